"""A generation as one JSON answer, or as a stream of chunks.

Takes what makes a generation and a format (what an endpoint's objects look like) of the model, gives the response. Knows
no endpoint.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from app.api.answers import PromptTokensDetails, Usage
from app.api.deadline import until_deadline
from app.api.generation import Delta, Generation, generate
from app.api.schemas import GenerationRequest, StreamOptions
from app.api.sse import open_event_stream, unless_disconnected
from app.errors import InvalidRequest
from app.lifecycle import State
from app.service import ServedModel, Service
from app.telemetry import names
from app.telemetry.requests import WatchedRequest
from streaming.clock import boottime_s

_encode = msgspec.json.Encoder().encode


class Format(Protocol):
    """What one endpoint's objects look like; the values are msgspec Structs."""

    operation: ClassVar[str]

    def pieces(self, delta: Delta) -> Iterable[Any]:
        """The choices that tell a stream of this delta, each for a chunk of its own; a choice's first one always."""

    def chunk(self, choices: tuple[Any, ...], usage: Usage | UnsetType | None) -> msgspec.Struct:
        """One chunk of a stream."""

    def whole(self, finished: Sequence[Delta], usage: Usage) -> msgspec.Struct:
        """The answer that is not streamed: every choice with its whole text."""


Begin = Callable[[ServedModel], Awaitable[tuple[Generation, Format]]]


@dataclass(frozen=True)
class _Started:
    """A generation whose sequences are submitted when its first deltas are asked for."""

    generation: Generation
    form: Format
    batches: AsyncGenerator[list[Delta], None]


async def deliver(
    service: Service, http: Request, body: GenerationRequest, wait_s: float | None, begin: Begin
) -> Response:
    """Await the model, plan the generation with it (`begin`), generate, and answer as the request asks.

    `wait_s` is how long to wait for a server that is not ready, as `Service.model_within` takes it; a stream is kept alive
    meanwhile.

    Raises:
        InvalidRequest: Stream options without a stream, or a stream with what only a whole answer has.
        ServiceError: The server is not ready, or `begin` or the engine refused or failed before there was anything to
            send.
        ClientDisconnect: The client went away; its sequences are aborted.
    """
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream=true", param="stream_options")
    if body.stream and body.prompt_logprobs is not None:
        raise InvalidRequest("prompt_logprobs come with whole answers only: leave out stream", param="prompt_logprobs")
    start = functools.partial(_start, service, http, body, wait_s, begin)
    if body.stream:
        chunks = _chunks(start, body.stream_options or StreamOptions())
        return await open_event_stream(http.receive, chunks, service.patience.keep_alive_s)
    answer = await unless_disconnected(http.receive, _whole(start))
    return Response(answer, media_type="application/json")


async def _start(
    service: Service, http: Request, body: GenerationRequest, wait_s: float | None, begin: Begin
) -> _Started:
    was_ready = service.lifecycle.state is State.READY
    model = await service.model_within(wait_s)
    ready_s = None if was_ready else boottime_s()
    generation, form = await begin(model)
    watched = _watched(service, http, body, generation, form)
    watched.ready_s = ready_s
    batches = generate(service, model, generation, service.watch(watched))
    if service.patience.deadline_s is not None:
        batches = until_deadline(batches, service.patience.deadline_s)
    return _Started(generation, form, batches)


def _watched(
    service: Service, http: Request, body: GenerationRequest, generation: Generation, form: Format
) -> WatchedRequest:
    state = http.scope["state"]
    return WatchedRequest(
        operation=form.operation,
        model=body.model,
        served_model=service.model_names[0],
        arrived_s=state["arrived_s"],
        choices=len(generation.prompts),
        parameters={
            names.REQUEST_STREAM: bool(body.stream),
            names.REQUEST_CHOICES: generation.choices if generation.choices > 1 else None,
            names.REQUEST_TEMPERATURE: body.temperature,
            names.REQUEST_TOP_P: body.top_p,
            names.REQUEST_TOP_K: body.top_k,
            names.REQUEST_SEED: body.seed,
            names.REQUEST_MAX_TOKENS: generation.sampling[0].max_tokens,
            names.INPUT_TOKENS: generation.prompt_tokens,
        },
        trace=state["trace"],
    )


async def _chunks(
    start: Callable[[], Awaitable[_Started]], options: StreamOptions
) -> AsyncGenerator[list[bytes], None]:
    """The stream's chunks as JSON, all at once that there are; nothing about usage unless it is asked for."""
    started = await start()
    form, count = started.form, _TokenCount(started.generation)
    async with aclosing(started.batches) as batches:
        async for deltas in batches:
            chunks = []
            for delta in deltas:
                count.add(delta)
                usage = _running_usage(count, options)
                chunks += [_encode(form.chunk((choice,), usage)) for choice in form.pieces(delta)]
            if chunks:
                yield chunks
    if options.include_usage:
        yield [_encode(form.chunk((), count.usage()))]


async def _whole(start: Callable[[], Awaitable[_Started]]) -> bytes:
    """The whole answer as JSON."""
    started = await start()
    form, count = started.form, _TokenCount(started.generation)
    parts: list[list[Delta]] = [[] for _ in started.generation.prompts]
    async with aclosing(started.batches) as batches:
        async for deltas in batches:
            for delta in deltas:
                count.add(delta)
                parts[delta.index].append(delta)
    # In a thread: a long prompt's log probabilities take a second to name and write.
    return await asyncio.to_thread(lambda: _encode(form.whole(list(map(_joined, parts)), count.usage())))


def _joined(parts: Sequence[Delta]) -> Delta:
    """One choice's deltas as one."""
    return Delta(
        index=parts[0].index,
        text="".join([part.text for part in parts]),
        tokens=tuple(token for part in parts for token in part.tokens),
        finish_reason=parts[-1].finish_reason,
        token_ids=tuple(token_id for part in parts for token_id in part.token_ids),
        prompt=parts[0].prompt,
    )


class _TokenCount:
    """The tokens of one request, as far as it has come."""

    def __init__(self, generation: Generation):
        self._choices = generation.choices
        self._prompt_tokens = generation.prompt_tokens
        self._completion_tokens = 0
        self._cached_tokens = 0

    def add(self, delta: Delta) -> None:
        """Count one delta; a prompt's cached tokens are those of its first choice."""
        self._completion_tokens += len(delta.token_ids)
        if delta.prompt is not None and delta.index % self._choices == 0:
            self._cached_tokens += delta.prompt.cached_tokens

    def usage(self) -> Usage:
        """So far."""
        total_tokens = self._prompt_tokens + self._completion_tokens
        details = PromptTokensDetails(self._cached_tokens)
        return Usage(self._prompt_tokens, self._completion_tokens, total_tokens, details)


def _running_usage(count: _TokenCount, options: StreamOptions) -> Usage | UnsetType | None:
    """What a chunk with choices says about usage: OpenAI's null where a last chunk will tell."""
    if options.continuous_usage_stats:
        return count.usage()
    return None if options.include_usage else UNSET
