"""A generation as one JSON answer, or as a stream of chunks.

Takes text deltas and a format (what an endpoint's objects look like), gives the response. Knows no
endpoint.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from typing import Any, Protocol

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from app.api.answers import Usage
from app.api.generation import Delta, Generation, generate
from app.api.schemas import GenerationRequest, StreamOptions
from app.api.sse import open_event_stream, unless_disconnected
from app.errors import InvalidRequest
from app.service import ServedModel, Service

_encode = msgspec.json.Encoder().encode


class Format(Protocol):
    """What one endpoint's objects look like; the values are msgspec Structs."""

    def pieces(self, delta: Delta, *, first: bool) -> Iterable[Any]:
        """The choices that tell a stream of this delta, each for a chunk of its own.

        Args:
            delta: What a token added.
            first: It is its choice's first, which is told even if its text is empty.
        """

    def chunk(self, choices: tuple[Any, ...], usage: Usage | UnsetType | None) -> msgspec.Struct:
        """One chunk of a stream."""

    def whole(self, finished: Sequence[Delta], usage: Usage) -> msgspec.Struct:
        """The answer that is not streamed: every choice with its whole text."""


async def deliver(
    service: Service, model: ServedModel, http: Request, body: GenerationRequest, generation: Generation, form: Format
) -> Response:
    """Generate, and answer as the request asks.

    Raises:
        InvalidRequest: Stream options without a stream.
        ServiceError: The engine refused or failed before there was anything to send.
        ClientDisconnect: The client went away; its sequences are aborted.
    """
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream=true", param="stream_options")
    deltas = generate(service, model, generation)
    if body.stream:
        options = body.stream_options or StreamOptions()
        return await open_event_stream(http.receive, _chunks(deltas, form, generation.prompt_tokens, options))
    answer = await unless_disconnected(http.receive, _whole(deltas, form, generation))
    return Response(answer, media_type="application/json")


async def _chunks(
    deltas: AsyncGenerator[Delta, None], form: Format, prompt_tokens: int, options: StreamOptions
) -> AsyncGenerator[bytes, None]:
    """The stream's chunks as JSON; nothing about usage unless it is asked for."""
    begun: set[int] = set()
    usage = _usage(prompt_tokens, 0)
    async with aclosing(deltas):
        async for delta in deltas:
            usage = _usage(prompt_tokens, usage.completion_tokens + 1)
            for choice in form.pieces(delta, first=delta.index not in begun):
                yield _encode(form.chunk((choice,), _running_usage(usage, options)))
            begun.add(delta.index)
    if options.include_usage:
        yield _encode(form.chunk((), usage))


async def _whole(deltas: AsyncGenerator[Delta, None], form: Format, generation: Generation) -> bytes:
    """The whole answer as JSON."""
    texts: list[list[str]] = [[] for _ in generation.prompts]
    reasons: list[str | None] = [None for _ in generation.prompts]
    completion_tokens = 0
    async with aclosing(deltas):
        async for delta in deltas:
            completion_tokens += 1
            texts[delta.index].append(delta.text)
            reasons[delta.index] = delta.finish_reason
    finished = [
        Delta(index, "".join(text), reason) for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))
    ]
    return _encode(form.whole(finished, _usage(generation.prompt_tokens, completion_tokens)))


def _running_usage(usage: Usage, options: StreamOptions) -> Usage | UnsetType | None:
    """What a chunk with choices says about usage: OpenAI's null where a last chunk will tell."""
    if options.continuous_usage_stats:
        return usage
    return None if options.include_usage else UNSET


def _usage(prompt_tokens: int, completion_tokens: int) -> Usage:
    return Usage(prompt_tokens, completion_tokens, prompt_tokens + completion_tokens)
