"""One request's sequences, generated side by side and merged into one stream of text.

Takes token ids and sampling parameters, gives text deltas as they become certain. Knows the engine's
client and the text model, no HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from app.messages import SamplingParams
from app.service import ServedModel, Service
from app.text.token_text import TokenText


@dataclass(frozen=True)
class Generation:
    """What one request asks of the engine: one sequence per choice, in the order of the choices.

    `continues` says that the text follows the prompt's own, space and all.
    """

    prompts: tuple[tuple[int, ...], ...]
    sampling: tuple[SamplingParams, ...]
    stops: tuple[str, ...]
    prompt_tokens: int
    continues: bool


@dataclass(frozen=True)
class Delta:
    """What one token added to one choice; `text` may be empty."""

    index: int
    text: str
    finish_reason: str | None


async def generate(service: Service, model: ServedModel, generation: Generation) -> AsyncGenerator[Delta, None]:
    """Yield every sequence's deltas as they come; closing it early aborts them all in the engine.

    Raises:
        NotReady, Overloaded, EngineFailure: As `EngineClient.generate`; the other sequences are aborted.
    """
    arrived: asyncio.Queue[Delta | asyncio.Task[None]] = asyncio.Queue()
    tasks = [
        asyncio.create_task(_sequence(service, model, index, generation, arrived))
        for index in range(len(generation.prompts))
    ]
    for task in tasks:
        task.add_done_callback(arrived.put_nowait)
    running = len(tasks)
    try:
        while running:
            item = await arrived.get()
            if isinstance(item, Delta):
                yield item
            else:
                item.result()  # raises what ended the sequence, if anything did
                running -= 1
    finally:
        await _cancel(tasks)


async def _sequence(
    service: Service,
    model: ServedModel,
    index: int,
    generation: Generation,
    arrived: asyncio.Queue[Delta | asyncio.Task[None]],
) -> None:
    """Generate one choice into `arrived`."""
    before = generation.prompts[index] if generation.continues else ()
    token_text = TokenText(model.text.new_detokenizer(before), generation.stops)
    tokens = service.engine.generate(generation.prompts[index], generation.sampling[index])
    first = True
    async with aclosing(tokens):
        async for token in tokens:
            if first:
                service.first_token()
                first = False
            text, finish_reason = token_text.push(token.token_id, token.finish_reason)
            arrived.put_nowait(Delta(index, text, finish_reason))
            if finish_reason is not None:
                return


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    """End the tasks that still run and wait until each has told the engine."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
