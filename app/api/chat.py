"""POST /v1/chat/completions: messages to the assistant's next message.

Takes messages, gives text. Knows the chat template only as something that makes a prompt of them.
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

from app.api.answers import ChatChoice, ChatChunkChoice, ChatCompletion, ChatMessage, Usage
from app.api.delivery import deliver
from app.api.generation import Delta
from app.api.models import served_model
from app.api.sampling import plan_generation
from app.api.schemas import ChatCompletionRequest
from app.api.schemas import Message as RequestMessage
from app.errors import InvalidRequest
from app.service import ServedModel, Service


@dataclass(frozen=True)
class ChatFormat:
    """What /v1/chat/completions answers with."""

    id: str
    created_s: int
    model: str

    def pieces(self, delta: Delta, *, first: bool) -> Iterator[ChatChunkChoice]:
        """The role, once; the text, if there is any; the end, with nothing but its reason."""
        if first:
            yield ChatChunkChoice(delta.index, ChatMessage(role="assistant", content=""), None)
        if delta.text:
            yield ChatChunkChoice(delta.index, ChatMessage(content=delta.text), None)
        if delta.finish_reason:
            yield ChatChunkChoice(delta.index, ChatMessage(), delta.finish_reason)

    def chunk(self, choices: tuple[ChatChunkChoice, ...], usage: Usage | UnsetType | None) -> ChatCompletion:
        """One chunk of a stream."""
        return self._object("chat.completion.chunk", choices, usage)

    def whole(self, finished: Sequence[Delta], usage: Usage) -> ChatCompletion:
        """Every choice with its whole message."""
        choices = tuple(
            ChatChoice(delta.index, ChatMessage(role="assistant", content=delta.text), delta.finish_reason)
            for delta in finished
        )
        return self._object("chat.completion", choices, usage)

    def _object(
        self, kind: str, choices: tuple[ChatChoice, ...] | tuple[ChatChunkChoice, ...], usage: Usage | UnsetType | None
    ) -> ChatCompletion:
        return ChatCompletion(
            id=self.id, object=kind, created=self.created_s, model=self.model, choices=choices, usage=usage
        )


def chat_routes(service: Service) -> APIRouter:
    """The endpoint, served by `service`."""
    routes = APIRouter()

    @routes.post("/v1/chat/completions", response_model=None)
    async def create_chat_completion(body: ChatCompletionRequest, http: Request) -> Response:
        """Answer the chat, `n` times."""
        model = served_model(service, body.model)
        service.engine.check_room(body.n or 1, param="n")
        max_tokens = _max_tokens(body)
        prompt = await asyncio.to_thread(_prompt_token_ids, model, body.messages)
        generation = plan_generation(body, model, (prompt,), max_tokens=max_tokens, param="messages", continues=False)
        form = ChatFormat(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), service.model_names[0])
        return await deliver(service, model, http, body, generation, form)

    return routes


def _max_tokens(body: ChatCompletionRequest) -> int | None:
    """`max_completion_tokens`, or its old name; None is the rest of the context."""
    if body.max_tokens and body.max_completion_tokens and body.max_tokens != body.max_completion_tokens:
        raise InvalidRequest("max_tokens contradicts max_completion_tokens: send one of them", param="max_tokens")
    return body.max_completion_tokens or body.max_tokens


def _prompt_token_ids(model: ServedModel, messages: Sequence[RequestMessage]) -> tuple[int, ...]:
    prompt = model.text.render_chat([message.for_template() for message in messages], add_generation_prompt=True)
    # The template has written the special tokens itself.
    return model.text.encode(prompt, add_special_tokens=False)
