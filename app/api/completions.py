"""POST /v1/completions: prompts to continuations.

Takes text or token ids, gives text. Knows no chat.
"""

from __future__ import annotations

import asyncio
import functools
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fastapi import APIRouter, Request
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from app.api import prompts
from app.api.answers import Completion, CompletionChoice, PromptLogprobs, Usage
from app.api.delivery import deliver
from app.api.fields import Prompt as SentPrompt
from app.api.generation import Delta, Generation, Prompt
from app.api.logprobs import completion_logprobs, prompt_logprobs
from app.api.models import check_name, system_fingerprint
from app.api.sampling import Scores, plan_generation
from app.api.schemas import CompletionRequest
from app.api.wait_header import WaitHeader
from app.errors import InvalidRequest
from app.service import ServedModel, Service
from app.telemetry.requests import COMPLETION
from app.text.token_names import TokenNames

# OpenAI's default, which clients rely on.
_DEFAULT_MAX_TOKENS = 16
# So many token ids are checked sooner than a thread is woken, which every request of a burst would wait for.
_QUICK_TOKENS = 4096


@dataclass(frozen=True)
class CompletionFormat:
    """What /v1/completions answers with."""

    operation: ClassVar[str] = COMPLETION

    id: str
    created_s: int
    model: str
    system_fingerprint: str
    request: CompletionRequest
    generation: Generation
    names: TokenNames

    def pieces(self, delta: Delta) -> Iterator[CompletionChoice]:
        """One choice, unless there is nothing to tell."""
        first = delta.prompt is not None
        scored = delta.tokens and self.request.logprobs is not None
        if first or delta.text or scored or delta.finish_reason or self.request.return_token_ids:
            yield self._choice(delta, tells_prompt=first)

    def chunk(self, choices: tuple[CompletionChoice, ...], usage: Usage | UnsetType | None) -> Completion:
        """One chunk of a stream."""
        return Completion(
            id=self.id,
            created=self.created_s,
            model=self.model,
            system_fingerprint=self.system_fingerprint,
            choices=choices,
            usage=usage,
        )

    def whole(self, finished: Sequence[Delta], usage: Usage) -> Completion:
        """Every choice with its whole text."""
        return self.chunk(tuple(self._choice(delta, tells_prompt=True) for delta in finished), usage)

    def _choice(self, delta: Delta, *, tells_prompt: bool) -> CompletionChoice:
        request = self.request
        scored = request.logprobs is not None and (delta.tokens or delta.finish_reason)
        prompt_token_ids = self.generation.prompts[delta.index].token_ids
        return CompletionChoice(
            delta.index,
            delta.text,
            delta.finish_reason,
            completion_logprobs(delta.tokens, delta.start_chars, request.logprobs or 0, self.names) if scored else None,
            prompt_logprobs=self._prompt_logprobs(delta, prompt_token_ids),
            token_ids=delta.token_ids if request.return_token_ids else UNSET,
            prompt_token_ids=prompt_token_ids if request.return_token_ids and tells_prompt else UNSET,
        )

    def _prompt_logprobs(self, delta: Delta, prompt_token_ids: tuple[int, ...]) -> PromptLogprobs | UnsetType:
        count = self.request.prompt_logprobs
        if count is None or delta.prompt is None:
            return UNSET
        return prompt_logprobs(prompt_token_ids, delta.prompt.logprobs or (), count, self.names)


def completion_routes(service: Service) -> APIRouter:
    """The endpoint, served by `service`."""
    routes = APIRouter()

    @routes.post("/v1/completions", response_model=None)
    async def create_completion(body: CompletionRequest, http: Request, wait_s: WaitHeader = None) -> Response:
        """Continue every prompt, `n` times each."""
        check_name(service, body.model)
        _check(body)
        service.engine.check_room(len(body.prompt) * (body.n or 1), param="prompt")
        return await deliver(service, http, body, wait_s, functools.partial(_begin, service.model_names[0], body))

    return routes


async def _begin(name: str, body: CompletionRequest, model: ServedModel) -> tuple[Generation, CompletionFormat]:
    generation = _plan(body, model) if _is_quick(body) else await asyncio.to_thread(_plan, body, model)
    return generation, CompletionFormat(
        id=f"cmpl-{body.request_id or uuid.uuid4().hex}",
        created_s=int(time.time()),
        model=name,
        system_fingerprint=system_fingerprint(name, model.dtype),
        request=body,
        generation=generation,
        names=model.text.names,
    )


def _check(body: CompletionRequest) -> None:
    """Refuse parameters that contradict each other."""
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise InvalidRequest("best_of: not supported unless it equals n", param="best_of")
    if body.max_tokens == 0 and not body.echo:
        raise InvalidRequest("max_tokens 0 asks for nothing, unless echo is true", param="max_tokens")
    if body.suffix and body.echo:
        raise InvalidRequest("suffix contradicts echo: send one of them", param="suffix")


def _is_quick(body: CompletionRequest) -> bool:
    """Whether there are a few token ids to check and no text to encode or decode."""
    if body.echo or body.suffix or body.bad_words:
        return False
    return sum(_QUICK_TOKENS if isinstance(sent, str) else len(sent) for sent in body.prompt) < _QUICK_TOKENS


def _plan(body: CompletionRequest, model: ServedModel) -> Generation:
    """What the engine is to do; takes seconds for megabytes of prompts."""
    max_tokens = _DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    found = [_prompt(body, model, sent) for sent in body.prompt]
    return plan_generation(
        body,
        model,
        [prompts.truncated(prompt, body, model, max_tokens) for prompt in found],
        max_tokens=max_tokens,
        scores=_scores(body),
        param="prompt",
        continues=not body.suffix,
    )


def _prompt(body: CompletionRequest, model: ServedModel, sent: SentPrompt) -> Prompt:
    adds = body.add_special_tokens is not False
    if body.suffix:
        return prompts.filled(model, sent, body.suffix, add_special_tokens=adds)
    if body.echo:
        skips = body.skip_special_tokens is not False
        return prompts.echoed(model, sent, add_special_tokens=adds, skip_special_tokens=skips)
    return prompts.encoded(model, sent, add_special_tokens=adds)


def _scores(body: CompletionRequest) -> Scores:
    """An echoed prompt is scored as the answer is."""
    asked = [body.prompt_logprobs, body.logprobs if body.echo else None]
    return Scores(body.logprobs, max((count for count in asked if count is not None), default=None))
