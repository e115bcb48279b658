"""POST /v1/completions: prompts to continuations.

Takes text or token ids, gives text. Knows no chat.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Request
from msgspec import UnsetType
from starlette.responses import Response

from app.api.answers import Completion, CompletionChoice, Usage
from app.api.delivery import deliver
from app.api.generation import Delta
from app.api.models import served_model
from app.api.sampling import plan_generation
from app.api.schemas import CompletionRequest, Prompt
from app.errors import InvalidRequest
from app.service import ServedModel, Service

# OpenAI's default, which clients rely on.
_DEFAULT_MAX_TOKENS = 16


@dataclass(frozen=True)
class CompletionFormat:
    """What /v1/completions answers with."""

    id: str
    created_s: int
    model: str

    def pieces(self, delta: Delta, *, first: bool) -> Iterator[CompletionChoice]:
        """One choice, unless there is nothing to tell."""
        if first or delta.text or delta.finish_reason:
            yield _choice(delta)

    def chunk(self, choices: tuple[CompletionChoice, ...], usage: Usage | UnsetType | None) -> Completion:
        """One chunk of a stream."""
        return Completion(id=self.id, created=self.created_s, model=self.model, choices=choices, usage=usage)

    def whole(self, finished: Sequence[Delta], usage: Usage) -> Completion:
        """Every choice with its whole text."""
        return self.chunk(tuple(map(_choice, finished)), usage)


def completion_routes(service: Service) -> APIRouter:
    """The endpoint, served by `service`."""
    routes = APIRouter()

    @routes.post("/v1/completions", response_model=None)
    async def create_completion(body: CompletionRequest, http: Request) -> Response:
        """Continue every prompt, `n` times each."""
        model = served_model(service, body.model)
        if body.best_of is not None and body.best_of != (body.n or 1):
            raise InvalidRequest("best_of: not supported yet, unless it equals n", param="best_of")
        service.engine.check_room(len(body.prompt) * (body.n or 1), param="prompt")
        prompts = await asyncio.to_thread(_token_ids, model, body.prompt)
        max_tokens = body.max_tokens or _DEFAULT_MAX_TOKENS
        generation = plan_generation(body, model, prompts, max_tokens=max_tokens, param="prompt", continues=True)
        form = CompletionFormat(f"cmpl-{uuid.uuid4().hex}", int(time.time()), service.model_names[0])
        return await deliver(service, model, http, body, generation, form)

    return routes


def _token_ids(model: ServedModel, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
    """Every prompt's token ids, encoded or checked; takes seconds for megabytes.

    Raises:
        InvalidRequest: A token id is not in the vocabulary.
    """
    return [
        model.text.encode(prompt, add_special_tokens=True) if isinstance(prompt, str) else _checked(model, prompt)
        for prompt in prompts
    ]


def _checked(model: ServedModel, prompt: tuple[int, ...]) -> tuple[int, ...]:
    wrong = next((token_id for token_id in prompt if not 0 <= token_id < model.vocab_size), None)
    if wrong is not None:
        raise InvalidRequest(f"token id {wrong} is not in [0, {model.vocab_size})", param="prompt")
    return prompt


def _choice(delta: Delta) -> CompletionChoice:
    return CompletionChoice(delta.index, delta.text, delta.finish_reason)
