"""One request's sequences, generated side by side and merged into one stream of text.

Takes token ids and sampling parameters, gives text deltas as they become certain. Knows the engine's
client and the text model, no HTTP.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

import msgspec

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


class TextToken(msgspec.Struct, frozen=True):
    """One token of a choice's text, the echoed prompt's too; the engine scores it where that is asked for."""

    text: str
    token_id: int
    logprobs: TokenLogprobs | None


class ScoredPrompt(msgspec.Struct, frozen=True):
    """What is known of a prompt once it has been computed."""

    logprobs: tuple[TokenLogprobs, ...] | None
    cached_tokens: int


class Delta(msgspec.Struct, frozen=True):
    """What one generated token added to one choice, or all of them together.

    `tokens` are those whose text is certain now, which may be none, and `text` is theirs. `token_ids` are generated
    ones, shown or not. `prompt` comes with a choice's first token.
    """

    index: int
    text: str
    tokens: tuple[TextToken, ...]
    finish_reason: str | None
    token_ids: tuple[int, ...]
    start_chars: int = 0
    prompt: ScoredPrompt | None = None


async def generate(service: Service, model: ServedModel, generation: Generation) -> AsyncGenerator[list[Delta], None]:
    """Yield the sequences' deltas, all at once that have come; closing it early aborts what runs in the engine.

    Raises:
        NotReady, Overloaded, EngineFailure: As `EngineClient.submit` and `Running.tokens`; the other sequences are
            aborted.
    """
    choices = [_Choice(model, index, generation) for index in range(len(generation.prompts))]
    token_ids = [prompt.token_ids for prompt in generation.prompts]
    with service.engine.submit(list(zip(token_ids, generation.sampling, strict=True))) as running:
        while running.unfinished:
            deltas = []
            for index, token in await running.tokens():
                delta = choices[index].push(token)
                if delta.prompt is not None:
                    service.first_token()
                if delta.finish_reason is not None:
                    running.abort(index)  # the engine does not know stop strings
                deltas.append(delta)
            yield deltas


class _Choice:
    """One choice's text as it grows."""

    def __init__(self, model: ServedModel, index: int, generation: Generation):
        self._index = index
        self._prompt = generation.prompts[index]
        detokenizer = model.text.new_detokenizer(
            self._prompt.token_ids if generation.continues else (), skip_special_tokens=generation.skip_special_tokens
        )
        self._text = TokenText(detokenizer, generation.stops, include_stop=generation.include_stop)
        self._scores_only = generation.scores_only
        self._untold: deque[TokenOutput] = deque()
        self._told_chars = 0
        self._begun = False

    def push(self, token: TokenOutput) -> Delta:
        """What the engine's next token adds."""
        tokens, finish_reason, token_ids = self._told(token)
        prompt = None
        if not self._begun:
            self._begun = True
            prompt = ScoredPrompt(token.prompt_logprobs, token.cached_tokens or 0)
            tokens = [*_echoed(self._prompt, token.prompt_logprobs), *tokens]
        text = "".join([shown.text for shown in tokens])
        start_chars = self._told_chars
        self._told_chars += len(text)
        return Delta(self._index, text, tuple(tokens), finish_reason, token_ids, start_chars, prompt)

    def _told(self, token: TokenOutput) -> tuple[list[TextToken], str | None, tuple[int, ...]]:
        """The tokens to show now, why the text ends here, if it does, and the token itself, if it was wanted."""
        if self._scores_only:  # the engine always generates
            return [], "length", ()
        self._untold.append(token)
        texts, finish_reason = self._text.push(token.token_id, token.finish_reason)
        outputs = [(text, self._untold.popleft()) for text in texts]
        tokens = [TextToken(text, output.token_id, output.logprobs) for text, output in outputs]
        return tokens, finish_reason, (token.token_id,)


def _echoed(prompt: Prompt, logprobs: Sequence[TokenLogprobs] | None) -> list[TextToken]:
    """The prompt as a part of the text; nothing predicts its first token."""
    if prompt.texts is None:
        return []
    scores: list[TokenLogprobs | None] = [None] * len(prompt.token_ids)
    if logprobs is not None:
        scores[1:] = logprobs
    return [TextToken(*each) for each in zip(prompt.texts, prompt.token_ids, scores, strict=True)]
