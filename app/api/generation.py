"""One request's sequences, generated side by side and merged into one stream of text.

Takes token ids and sampling parameters, gives text deltas as they become certain. Knows the engine's
client and the text model, no HTTP.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from app.messages import SamplingParams, TokenLogprobs, TokenOutput
from app.service import ServedModel, Service
from app.text.token_text import TokenText


@dataclass(frozen=True)
class Prompt:
    """Token ids, and where the prompt is echoed the text of each."""

    token_ids: tuple[int, ...]
    texts: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What one request asks of the engine: one sequence per choice, in the order of the choices.

    `choices` is how many sequences each prompt has. `continues` says that the text follows the prompt's own, space and
    all; `scores_only` that nothing is wanted but the prompt.
    """

    prompts: tuple[Prompt, ...]
    sampling: tuple[SamplingParams, ...]
    choices: int
    stops: tuple[str, ...]
    continues: bool
    scores_only: bool = False
    include_stop: bool = False
    skip_special_tokens: bool = True

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, each counted once."""
        return sum(len(prompt.token_ids) for prompt in self.prompts[:: self.choices])


@dataclass(frozen=True)
class TextToken:
    """One token of a choice's text, the echoed prompt's too; the engine scores it where that is asked for."""

    text: str
    token_id: int
    logprobs: TokenLogprobs | None


@dataclass(frozen=True)
class ScoredPrompt:
    """What is known of a prompt once it has been computed."""

    logprobs: tuple[TokenLogprobs, ...] | None
    cached_tokens: int


@dataclass(frozen=True)
class Delta:
    """What one generated token added to one choice, or all of them together.

    `tokens` are those whose text is certain now, which may be none. `token_ids` are generated ones, shown or not.
    """

    index: int
    tokens: tuple[TextToken, ...]
    finish_reason: str | None
    token_ids: tuple[int, ...]
    start_chars: int = 0
    prompt: ScoredPrompt | None = None

    @property
    def text(self) -> str:
        """The text of the tokens; may be empty."""
        return "".join(token.text for token in self.tokens)


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
    prompt = generation.prompts[index]
    text = _ChoiceText(model, prompt, generation)
    tokens = service.engine.generate(prompt.token_ids, generation.sampling[index])
    first = True
    start_chars = 0
    async with aclosing(tokens):
        async for token in tokens:
            shown, finish_reason = text.push(token)
            scored = None
            if first:
                first = False
                service.first_token()
                scored = ScoredPrompt(token.prompt_logprobs, token.cached_tokens or 0)
                shown = [*_echoed(prompt, token.prompt_logprobs), *shown]
            token_ids = () if generation.scores_only else (token.token_id,)
            delta = Delta(index, tuple(shown), finish_reason, token_ids, start_chars, scored)
            start_chars += len(delta.text)
            arrived.put_nowait(delta)
            if finish_reason is not None:
                return


class _ChoiceText:
    """The engine's tokens of one choice with their texts, once these are certain."""

    def __init__(self, model: ServedModel, prompt: Prompt, generation: Generation):
        detokenizer = model.text.new_detokenizer(
            prompt.token_ids if generation.continues else (), skip_special_tokens=generation.skip_special_tokens
        )
        self._text = TokenText(detokenizer, generation.stops, include_stop=generation.include_stop)
        self._scores_only = generation.scores_only
        self._waiting: deque[TokenOutput] = deque()

    def push(self, token: TokenOutput) -> tuple[list[TextToken], str | None]:
        """The tokens to show now, and the reason why the text ends here, if it does."""
        if self._scores_only:  # the engine always generates; the token is not wanted
            return [], "length"
        self._waiting.append(token)
        texts, finish_reason = self._text.push(token.token_id, token.finish_reason)
        told = [(text, self._waiting.popleft()) for text in texts]
        return [TextToken(text, output.token_id, output.logprobs) for text, output in told], finish_reason


def _echoed(prompt: Prompt, logprobs: Sequence[TokenLogprobs] | None) -> list[TextToken]:
    """The prompt as a part of the text; nothing predicts its first token."""
    if prompt.texts is None:
        return []
    scores: list[TokenLogprobs | None] = [None] * len(prompt.token_ids)
    if logprobs is not None:
        scores[1:] = logprobs
    return [TextToken(*each) for each in zip(prompt.texts, prompt.token_ids, scores, strict=True)]


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    """End the tasks that still run and wait until each has told the engine."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
