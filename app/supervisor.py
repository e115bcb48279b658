"""The hub between loader, engine and API: who is told what, and when the server is ready.

Takes the events of `app.loading` and `app.engine_host`, moves the lifecycle, fills the ledger and the
service. Knows no HTTP; holds no socket and no process itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from app.child import Child
from app.described_model import described_support, description_request
from app.engine_host import EngineHost
from app.lifecycle import State
from app.loading import Loading
from app.messages import (
    BindArena,
    DescribedModel,
    DescribeModel,
    EngineReady,
    EngineStats,
    RequestFailed,
    StepOutput,
    WeightsLanded,
)
from app.model_support import NoFamily, SupportedModel, support
from app.sampling_defaults import SamplingDefaults
from app.service import ServedModel, Service
from app.telemetry import names
from app.wishes import Wishes
from streaming.clock import boottime_s
from streaming.errors import ErrorReport, StreamingError, report
from streaming.messages import BlobVersion, Described, FellBack, LoadReport, LoadRequest, PhaseTimed, Plan, Planned
from streaming.options import HOST_STAGING
from streaming.progress import Progress

if TYPE_CHECKING:
    from app.text.text_model import TextModel

logger = logging.getLogger(__name__)

TOKENIZER = "tokenizer.json"


class Supervisor:
    """One server's startup and its processes.

    Args:
        service: Filled in as things become known; its lifecycle is driven from here.
        request: What the loader has been asked for.
        wishes: Model and engine settings.
        spawn: Starts a child by module name; a patient one waits for all of its imports.
        loader: The loader, which has `request` already.
        engine: The engine, importing torch.
    """

    def __init__(
        self,
        service: Service,
        request: LoadRequest,
        wishes: Wishes,
        spawn: Callable[[str, bool], Child],
        *,
        loader: Child,
        engine: Child,
    ):
        self._service = service
        self._spawn = spawn
        self._engine_module = engine.module
        self._request = request
        self._wishes = wishes
        self._model: SupportedModel | None = None
        self._asked: tuple[Described, DescribeModel] | None = None
        self._files: dict[str, bytes] = {}
        self._text: TextModel | None = None
        self._warmup_token_ids: tuple[int, ...] = ()
        self._defaults = SamplingDefaults()
        self._planned_s = 0.0
        self._weights_landed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.failure: asyncio.Future[ErrorReport] = asyncio.get_running_loop().create_future()
        self._engine = EngineHost(engine, self._another_engine, self)
        self._loading = Loading(loader, request, lambda: self._respawn("loader", loader.module), self)

    def close(self) -> None:
        """End both processes."""
        self._loading.close()
        self._engine.close()
        for task in self._tasks:
            task.cancel()

    def phase(self, phase: PhaseTimed) -> None:
        """Enter a phase of another process into the ledger."""
        self._service.ledger.phase(phase.name, phase.start_s, phase.end_s)
        if phase.name == "source.headers":
            self._service.ledger.milestone(names.FETCH_START, phase.start_s)

    def described(self, described: Described) -> None:
        """Lay the model out, or refuse it before a weight byte moves; transformers is asked about what is not ours."""
        try:
            self._lay_out(described, support(described.files, described.entries, dtype=self._wishes.dtype))
        except NoFamily as reason:
            logger.info("not for our own decoder: %s", reason)
            self._ask_transformers(described)
        except StreamingError as error:
            self.failed(report(error))

    def model_described(self, answer: DescribedModel) -> None:
        """Lay out what transformers' class wants."""
        assert self._asked is not None  # this is the answer
        (described, request), self._asked = self._asked, None
        try:
            self._lay_out(described, described_support(described.files, described.entries, request, answer))
        except StreamingError as error:
            self.failed(report(error))

    def converted(self, tokenizer_json: bytes) -> None:
        """Go on as if the checkpoint had brought this tokenizer.json."""
        self._files = {**self._files, TOKENIZER: tokenizer_json}
        self._read_text()

    def planned(self, planned: Planned, fds: list[int]) -> None:
        """Give the engine its addresses while their bytes are on the way."""
        assert self._model is not None  # nothing is planned without one
        plan, planned_s = planned.plan, planned.planned_s
        self._planned_s = planned_s
        self._service.lifecycle.progress = Progress(plan.fetch_bytes, start_s=planned_s)
        self._service.lifecycle.advance(State.LOADING, f"loading weights ({self._request.strategy})")
        bind = BindArena(
            origin=self._request.origin,
            config=self._files["config.json"],
            extents=plan.extents,
            memory=planned.memory,
            options=self._wishes.engine,
            transformers_dtype=self._model.transformers_dtype,
        )
        self._engine.bind(bind, fds)

    def fell_back(self, fallback: FellBack) -> None:
        """Never silently: log why, and count it."""
        logger.warning("fell back to %s: %s", fallback.what, fallback.reason)
        self._service.ledger.fallback(fallback.what, fallback.reason)

    def progressed(self, nbytes: int) -> None:
        """Count landed bytes."""
        assert self._service.lifecycle.progress is not None  # it was planned
        self._service.lifecycle.progress.add(nbytes, boottime_s())

    def landed(self, plan: Plan, report: LoadReport) -> None:
        """The bytes are there: log the line that proves the path, and warm up on them."""
        ledger = self._service.ledger
        ledger.fetched_bytes, ledger.shards = report.fetched_bytes, report.shards
        ledger.milestone(names.FETCH_END, report.fetched_s)
        ledger.milestone(names.STAGING_COMPLETE, report.landed_s)
        assert self._model is not None  # nothing is planned without one
        seconds = report.landed_s - self._planned_s
        staged = self._request.strategy == HOST_STAGING
        logger.info(
            "%s %d tensors in %d shards, %d bytes, %s -> %s in %.2f s (%.2f GB/s)",
            "staged" if staged else "streamed",
            len(self._model.tensors),
            len(plan.versions),
            plan.fetch_bytes,
            self._request.uri,
            "disk" if staged else self._wishes.engine.device,
            seconds,
            plan.fetch_bytes / max(seconds, 1e-9) / 1e9,
        )
        self._weights_landed = True
        self._service.lifecycle.advance(State.WARMING, "weights landed, warming up")
        self._warm_up()

    def engine_ready(self, ready: EngineReady) -> None:
        """Open the doors."""
        model, text = self._model, self._text
        assert model is not None  # the engine was bound to it,
        assert text is not None  # and warmed up on its tokens
        heard_s = boottime_s()
        self._service.model = ServedModel(
            text=text,
            max_model_len_tokens=ready.max_model_len_tokens,
            vocab_size=min(text.vocab_size, model.vocab_size),
            stop_token_ids=model.stop_token_ids,
            created_s=int(time.time()),
            dtype=model.dtype,
            defaults=self._defaults,
        )
        self._service.engine.attach(self._engine.send)
        ready_s = boottime_s()
        if self._service.ledger.milestone(names.LOAD_COMPLETE, ready_s):
            self._service.ledger.phase("ready", heard_s, ready_s)
            self._service.ledger.device_used_bytes = _device_used_bytes(ready)
        if self._service.lifecycle.advance(State.READY, "loaded and warm"):
            logger.info("ready: %s, %d KV cache blocks", model.architecture, ready.kv_cache_blocks)

    def engine_output(self, output: StepOutput | RequestFailed) -> None:
        """Hand tokens to whoever waits for them."""
        self._service.engine.deliver(output)

    def engine_stats(self, stats: EngineStats) -> None:
        """Remember how full the engine is."""
        self._service.load.update(stats)

    def engine_lost(self, reason: str) -> None:
        """End the requests it had; go back to warming if it had been serving."""
        self._service.load.lost()
        self._service.engine.detach(reason)
        if self._service.lifecycle.state is State.READY:
            self._service.lifecycle.advance(State.WARMING, "the engine died; another one binds to the same weights")

    def failed(self, error: ErrorReport) -> None:
        """The server cannot become ready (again): say why, once, and end what still runs for it."""
        if self.failure.done() or not self._service.lifecycle.advance(State.FAILED, error.message):
            return
        logger.error("%s: %s", error.kind, error.message)
        self._service.engine.detach(error.message)
        self.failure.set_result(error)
        self.close()

    def broken(self, error: Exception) -> None:
        """A fault of ours: say where, and end rather than stay half alive."""
        logger.error("unexpected: please report this", exc_info=error)
        self.failed(ErrorReport(type(error).__name__, f"the server is broken: {error}", 6))

    def _another_engine(self) -> Child:
        """Patient, if none has ever become ready: the first may have died of its haste."""
        return self._respawn("engine", self._engine_module, patient=self._service.model is None)

    def _respawn(self, name: str, module: str, *, patient: bool = False) -> Child:
        """Never silently: count it."""
        self._service.ledger.restarts[name] += 1
        return self._spawn(module, patient)

    def _ask_transformers(self, described: Described) -> None:
        try:
            request = description_request(described.files, described.entries, dtype=self._wishes.dtype)
        except StreamingError as error:
            self.failed(report(error))
            return
        is_waiting = self._asked is not None  # a loader that is followed by another describes the same again
        self._asked = described, request
        if not is_waiting:
            self._engine.describe_model(request)

    def _lay_out(self, described: Described, model: SupportedModel) -> None:
        """Tell the loader what to land, and read the tokenizer meanwhile.

        Raises:
            StreamingError: The settings ask for what this model is not.
        """
        self._wishes.check(model, len(described.versions))
        self._defaults = self._wishes.sampling_defaults(described.files)
        _warn_of_unpinned(described.versions)
        self._model, self._files = model, described.files
        self._loading.lay_out(model.layout(described.origin, self._wishes.least_cache_bytes(model)))
        if TOKENIZER in self._files:
            self._read_text()
        else:
            logger.warning(
                "there is no %s: the engine converts the tokenizer with transformers, which is slow", TOKENIZER
            )
            self._engine.convert_tokenizer(self._files)

    def _read_text(self) -> None:
        task = asyncio.create_task(self._build_text())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _build_text(self) -> None:
        """Read the tokenizer in a thread: a large one takes a second."""
        start_s = boottime_s()
        try:
            text, token_ids = await asyncio.to_thread(_read_text, self._files, self._wishes.warmup_prompt)
        except StreamingError as error:
            self.failed(report(error))
            return
        except Exception as error:  # noqa: BLE001 - nobody awaits this task
            self.broken(error)
            return
        self._service.ledger.phase("server.tokenizer", start_s, boottime_s())
        assert self._model is not None  # it was described before its files were read
        self._text = text
        # A tokenizer may know more tokens than the model has embeddings.
        self._warmup_token_ids = tuple(token_id for token_id in token_ids if token_id < self._model.vocab_size)
        self._warm_up()

    def _warm_up(self) -> None:
        """Warm up once both the weights and the warm-up prompt's tokens are there."""
        if self._weights_landed and self._text is not None:
            shards, fds = self._loading.staged()
            self._engine.weights_landed(WeightsLanded(self._warmup_token_ids, shards), fds)


def _device_used_bytes(ready: EngineReady) -> dict[str, int]:
    memory = ready.memory
    return {} if memory is None else {"weights_landed": memory.landed_bytes, "ready": memory.ready_bytes}


def _warn_of_unpinned(versions: Sequence[BlobVersion]) -> None:
    """Say that it is our comparison, not the service, that would notice an overwritten blob."""
    unpinned = [version.name for version in versions if not version.is_pinned]
    if unpinned:
        logger.warning(
            "the source gives no strong ETag (%s): size, ETag and date of every answer are compared", unpinned[0]
        )


def _read_text(files: dict[str, bytes], warmup_prompt: str) -> tuple[TextModel, tuple[int, ...]]:
    """The text model and the warm-up prompt's tokens. Its imports wait until the children are at work."""
    from app.text.text_model import TextModel

    text = TextModel.from_files(files)
    return text, text.encode(warmup_prompt, True)
