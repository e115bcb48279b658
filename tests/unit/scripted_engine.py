"""A served toy model for the API's tests: real EngineClient, scripted engine, a tokenizer of single bytes."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
import uvicorn
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from app.api.front import Front
from app.api.server import ApiOptions, create_app
from app.engine_client import EngineClient
from app.lifecycle import Lifecycle, State
from app.messages import Abort, RequestFailed, StepOutput, Submit, TokenLogprobs, TokenOutput
from app.service import Patience, ServedModel, Service
from app.telemetry.ledger import Ledger
from app.telemetry.metrics import Metrics
from app.text.text_model import TextModel

HANG = "hang"
MAX_MODEL_LEN = 200
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' and loop.first %}"
    "{{ raise_exception('the user speaks first') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)

Script = Callable[[Submit], Sequence[int | str | asyncio.Barrier]]


def byte_tokenizer() -> Tokenizer:
    """One token per byte, a BOS in front, an EOS: every multi-byte character spans tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<bos>", special=True), AddedToken("<eos>", special=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", 256)]
    )
    return tokenizer


def byte_text_model(*, template: str | None = TEMPLATE) -> TextModel:
    config = {"bos_token": "<bos>", "eos_token": "<eos>", "chat_template": template}
    return TextModel.from_files(
        {
            "tokenizer.json": byte_tokenizer().to_str().encode(),
            "tokenizer_config.json": json.dumps(config).encode(),
        }
    )


BOS, EOS = 256, 257


@dataclass
class ScriptedEngine:
    """Answers every Submit with its script: token ids, "hang", barriers to wait at, other strings as failures.

    It honours max_tokens and stop_token_ids, as the real engine does; a script that runs out ends with
    "length". It scores tokens by `scored` and finds the first half of every prompt in its cache.
    """

    client: EngineClient
    script: Script
    submitted: list[Submit] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    abort_seen: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    def send(self, message: Submit | Abort) -> None:
        """What the client writes to."""
        if isinstance(message, Abort):
            self.aborted.append(message.request_id)
            self.abort_seen.set()
            self._tasks[message.request_id].cancel()
            return
        self.submitted.append(message)
        self._tasks[message.request_id] = asyncio.get_running_loop().create_task(self._run(message))

    async def _run(self, submit: Submit) -> None:
        items = list(self.script(submit))[: max(1, submit.sampling.max_tokens)]
        for position, item in enumerate(items):
            await asyncio.sleep(0)
            if item == HANG:
                await asyncio.Event().wait()
            if isinstance(item, asyncio.Barrier):
                await item.wait()
                continue
            if isinstance(item, str):
                self.client.deliver(RequestFailed(submit.request_id, item))
                return
            finish = "stop" if item in submit.sampling.stop_token_ids else None
            if finish is None and position == len(items) - 1:
                finish = "length"
            self.client.deliver(StepOutput((_output(submit, item, finish, first=position == 0),)))
            if finish is not None:
                return


def scored(token_id: int, count: int, vocab_size: int = 258) -> TokenLogprobs:
    """What the scripted engine thinks of a token: the likeliest is the token itself, then come the ids behind it."""
    top = [(token_id + step) % vocab_size for step in range(count)]
    return TokenLogprobs(-0.25, 1, tuple(top), tuple(-0.25 - step for step in range(count)))


def _output(submit: Submit, token_id: int, finish: str | None, *, first: bool) -> TokenOutput:
    sampling = submit.sampling
    prompt_logprobs = None
    if first and sampling.prompt_logprobs is not None:
        prompt_logprobs = tuple(scored(each, sampling.prompt_logprobs) for each in submit.prompt_token_ids[1:])
    logprobs = None if sampling.logprobs is None else scored(token_id, sampling.logprobs)
    cached_tokens = len(submit.prompt_token_ids) // 2 if first else None
    return TokenOutput(submit.request_id, token_id, finish, logprobs, prompt_logprobs, cached_tokens)


@dataclass
class Served:
    """Everything a test may want to look at."""

    service: Service
    engine: ScriptedEngine
    app: Front
    text: TextModel

    def client(self, **options: object) -> httpx.AsyncClient:
        """A client that calls the application without a socket."""
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://test", **options)


def ready_lifecycle() -> Lifecycle:
    lifecycle = Lifecycle()
    for state in (State.LOADING, State.WARMING, State.READY):
        assert lifecycle.advance(state, state.value)
    return lifecycle


def serve(
    answer: str | Script = "hello",
    *,
    lifecycle: Lifecycle | None = None,
    max_sequences: int = 64,
    template: str | None = TEMPLATE,
    options: ApiOptions | None = None,
    patience: Patience | None = None,
) -> Served:
    """A service whose engine answers every sequence with this text and EOS, or by a script."""
    text = byte_text_model(template=template)
    client = EngineClient(max_sequences=max_sequences)
    script: Script = answer if callable(answer) else lambda _: [*text.encode(answer, False), EOS]
    engine = ScriptedEngine(client, script)
    client.attach(engine.send)
    service = Service(
        model_names=("toy", "org/toy-alias"),
        lifecycle=lifecycle or ready_lifecycle(),
        ledger=Ledger(0.0),
        engine=client,
        patience=patience,
    )
    service.model = ServedModel(
        text=text,
        max_model_len_tokens=MAX_MODEL_LEN,
        vocab_size=text.vocab_size,
        stop_token_ids=(EOS,),
        created_s=1_700_000_000,
        dtype="float32",
    )
    front = Front(service)
    metrics = Metrics(service)
    service.observers.append(metrics.observe)
    service.http_observers.append(metrics.observe_http)
    front.measure_with(metrics.render)
    front.serve_with(create_app(service, options or ApiOptions()))
    return Served(service, engine, front, text)


class _Server(uvicorn.Server):
    """One that ends when it is told to, where uvicorn looks ten times a second."""

    def __init__(self, config: uvicorn.Config):
        super().__init__(config)
        self.over = asyncio.Event()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self.over.wait()


@asynccontextmanager
async def listening(app: Front) -> AsyncIterator[str]:
    """A real uvicorn around `app`, in this event loop; gives its base URL."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        server = _Server(uvicorn.Config(app, lifespan="off", ws="none", log_level="critical"))
        running = asyncio.create_task(server.serve(sockets=[sock]))
        while not server.started:  # noqa: ASYNC110 - uvicorn has a flag, no event
            await asyncio.sleep(0.005)
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            server.force_exit = True
            server.over.set()
            await running


def events(body: str) -> list[str]:
    """The data of every event, having checked that the framing is `data: ...` and a blank line."""
    frames = body.split("\n\n")
    assert frames.pop() == ""
    assert all(frame.startswith("data: ") and "\n" not in frame for frame in frames)
    return [frame.removeprefix("data: ") for frame in frames]


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> dict[str, object]:
    """The usage object of an answer."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }
