"""The hub between loader, engine and API: who is told what, and when the server is ready.

Takes the events of `app.loading` and `app.engine_host`, moves the lifecycle, fills the ledger and the
service. Knows no HTTP; holds no socket and no process itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.child import Child
from app.engine_host import EngineHost, EnginePatience
from app.errors import EngineFailure
from app.lifecycle import State
from app.load_log import LoadLog
from app.loading import Loading
from app.messages import (
    BindArena,
    DescribedModel,
    EngineReady,
    EngineStats,
    RequestFailed,
    StepOutput,
    WeightsLanded,
)
from app.model_choice import ModelChoice
from app.model_support import SupportedModel
from app.sampling_defaults import SamplingDefaults
from app.service import ServedModel, Service
from app.telemetry import names
from app.text_reading import TextReading
from app.wishes import Wishes
from streaming.clock import boottime_s
from streaming.counters import FetchCounters
from streaming.errors import ErrorReport
from streaming.messages import Described, FellBack, LoadReport, LoadRequest, PhaseTimed, Plan, Planned
from streaming.progress import Progress

if TYPE_CHECKING:
    from app.text.text_model import TextModel

logger = logging.getLogger(__name__)

TOKENIZER = "tokenizer.json"
# Reached at the end of a phase of the engine.
_MILESTONES = {"weights.load": names.LOAD_COMPLETE, "engine.first_pass": names.FIRST_TOKEN}


@dataclass(frozen=True)
class Timeouts:
    """How long, in seconds, the load may land nothing, and how patient the server is with its engine."""

    stall_s: float
    engine: EnginePatience


class Supervisor:
    """One server's startup and its processes.

    Args:
        service: Filled in as things become known; its lifecycle is driven from here.
        request: What the loader has been asked for.
        wishes: Model and engine settings.
        timeouts: After which a child that hangs is replaced.
        spawn: Starts a child by module name; a patient one waits for all of its imports.
        loader: The loader, which has `request` already.
        engine: The engine, importing torch.
    """

    def __init__(
        self,
        service: Service,
        request: LoadRequest,
        wishes: Wishes,
        timeouts: Timeouts,
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
        self._files: dict[str, bytes] = {}
        self._text: TextModel | None = None
        self._warmup_token_ids: tuple[int, ...] = ()
        self._defaults = SamplingDefaults()
        self._log = LoadLog(request, wishes.engine.device)
        self._planned_s = 0.0
        self._weights_landed = False
        self._warms_up = False
        self._text_reading = TextReading(
            wishes.warmup_prompt, on_read=self._text_read, on_failed=self.failed, on_error=self.broken
        )
        self.failure: asyncio.Future[ErrorReport] = asyncio.get_running_loop().create_future()
        self._engine = EngineHost(
            engine,
            self._another_engine,
            self,
            has_work=lambda: service.engine.has_work,
            patience=timeouts.engine,
        )
        self._choice = ModelChoice(
            wishes.dtype, ask=self._engine.describe_model, on_chosen=self._lay_out, on_failed=self.failed
        )
        self._loading = Loading(
            loader,
            request,
            lambda: self._respawn("loader", loader.module),
            self,
            stall_timeout_s=timeouts.stall_s,
        )

    def close(self) -> None:
        """End both processes, and wait until they are gone."""
        self._end()
        self._loading.close()
        self._engine.close()

    def _end(self) -> None:
        """End what runs; the event loop still has probes to answer, and clients to tell."""
        self._loading.end()
        self._engine.end()
        self._text_reading.close()

    def phase(self, phase: PhaseTimed) -> None:
        """Enter a phase of another process into the ledger."""
        self._service.ledger.phase(phase.name, phase.start_s, phase.end_s)
        self._service.lifecycle.eta.engine_phase(phase.name, phase.start_s, phase.end_s)
        if phase.name in _MILESTONES:
            self._service.ledger.milestone(_MILESTONES[phase.name], phase.end_s)

    def described(self, described: Described) -> None:
        """Lay the model out, or refuse it before a weight byte moves."""
        self._choice.described(described)

    def model_described(self, answer: DescribedModel) -> None:
        """Lay out what transformers' class wants."""
        self._choice.answered(answer)

    def converted(self, tokenizer_json: bytes) -> None:
        """Go on as if the checkpoint had brought this tokenizer.json."""
        self._files = {**self._files, TOKENIZER: tokenizer_json}
        self._text_reading.start(self._files)

    def planned(self, planned: Planned, fds: list[int]) -> None:
        """Give the engine its addresses while their bytes are on the way."""
        assert self._model is not None  # nothing is planned without one
        plan, planned_s = planned.plan, planned.planned_s
        self._planned_s = planned_s
        self._service.ledger.milestone(names.FETCH_START, planned_s)
        round_bytes = self._request.pipeline.lanes * max((chunk.nbytes for chunk in plan.chunks), default=0)
        self._service.lifecycle.progress = Progress(plan.fetch_bytes, start_s=planned_s, round_bytes=round_bytes)
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

    def counted(self, counters: FetchCounters) -> None:
        """Remember what the load has met."""
        self._service.ledger.counters = counters

    def progressed(self, nbytes: int) -> None:
        """Count landed bytes."""
        assert self._service.lifecycle.progress is not None  # it was planned
        self._service.lifecycle.progress.add(nbytes, boottime_s())

    def landed(self, plan: Plan, report: LoadReport) -> None:
        """The bytes are there: log the line that proves the path and says what was verified, and warm up on them."""
        ledger = self._service.ledger
        ledger.fetched_bytes, ledger.shards = report.fetched_bytes, report.shards
        ledger.milestone(names.FETCH_END, report.fetched_s)
        ledger.milestone(names.STAGING_COMPLETE, report.landed_s)
        assert self._model is not None  # nothing is planned without one
        self._log.landed(
            plan,
            ledger.counters,
            tensors=len(self._model.tensors),
            seconds=report.landed_s - self._planned_s,
        )
        self._weights_landed = True
        self._service.lifecycle.eta.landed(report.landed_s)
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
        if self._service.ledger.milestone(names.READY, ready_s):
            self._service.ledger.phase("ready", heard_s, ready_s)
            self._service.ledger.device_used_bytes = _device_used_bytes(ready)
        if self._service.lifecycle.advance(State.READY, "loaded and warm"):
            logger.info(
                "ready: %s, %d KV cache blocks, the warm-up's first token is %r",
                model.architecture,
                ready.kv_cache_blocks,
                text.names.text(ready.first_token_id),
            )

    def engine_output(self, output: StepOutput | RequestFailed) -> None:
        """Hand tokens to whoever waits for them."""
        self._service.engine.deliver(output)

    def engine_stats(self, stats: EngineStats) -> None:
        """Remember how full the engine is."""
        self._service.load.update(stats)

    def loader_lost(self, what: str) -> None:
        """Say on /health that the load goes on with another loader."""
        self._say(f"the loader {what}; another one fetches the rest")

    def engine_lost(self, what: str) -> None:
        """End the requests it had; go back to warming if it had been serving."""
        self._service.load.lost()
        self._service.engine.detach(EngineFailure(f"the engine {what}"))
        if self._service.lifecycle.state is State.READY:
            self._service.lifecycle.advance(State.WARMING, "")
        self._say(f"the engine {what}; another one binds to the same weights")

    def engine_respawned(self) -> None:
        """Reckon with another start."""
        self._service.lifecycle.eta.engine_started(boottime_s())

    def _say(self, detail: str) -> None:
        """Show a loss on /health, unless the server is on its way out."""
        lifecycle = self._service.lifecycle
        if lifecycle.state in (State.STARTING, State.LOADING, State.WARMING):
            lifecycle.advance(lifecycle.state, detail)

    def failed(self, error: ErrorReport) -> None:
        """The server cannot become ready (again): say why, once, and end what still runs for it."""
        if self.failure.done() or not self._service.lifecycle.advance(State.FAILED, error.message):
            return
        logger.error("%s: %s", error.kind, error.message)
        self._service.engine.detach(EngineFailure(error.message))
        self.failure.set_result(error)
        self._end()

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

    def _lay_out(self, described: Described, model: SupportedModel) -> None:
        """Tell the loader what to land, and read the tokenizer meanwhile.

        Raises:
            StreamingError: The settings ask for what this model is not.
        """
        self._wishes.check(model, len(described.versions))
        self._defaults = self._wishes.sampling_defaults(described.files)
        self._log.described(described)
        self._model, self._files = model, described.files
        self._loading.lay_out(model.layout(described.origin, self._wishes.least_cache_bytes(model)))
        if TOKENIZER in self._files:
            self._text_reading.start(self._files)
        else:
            logger.warning(
                "there is no %s: the engine converts the tokenizer with transformers, which is slow", TOKENIZER
            )
            self._engine.convert_tokenizer(self._files)

    def _text_read(self, text: TextModel, token_ids: tuple[int, ...], start_s: float) -> None:
        self._service.ledger.phase("server.tokenizer", start_s, boottime_s())
        assert self._model is not None  # it was described before its files were read
        self._text = text
        # A tokenizer may know more tokens than the model has embeddings.
        self._warmup_token_ids = tuple(token_id for token_id in token_ids if token_id < self._model.vocab_size)
        self._warm_up()

    def _warm_up(self) -> None:
        """Warm up once both the weights and the warm-up prompt's tokens are there; the text may be read twice."""
        if self._weights_landed and self._text is not None and not self._warms_up:
            self._warms_up = True
            shards, fds = self._loading.staged()
            self._engine.weights_landed(WeightsLanded(self._warmup_token_ids, shards), fds)


def _device_used_bytes(ready: EngineReady) -> dict[str, int]:
    memory = ready.memory
    return {} if memory is None else {"weights_landed": memory.landed_bytes, "ready": memory.ready_bytes}
