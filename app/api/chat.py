"""POST /v1/chat/completions: messages to the assistant's next message.

Takes messages, gives text. Knows the chat template only as something that makes a prompt of them.
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
from app.api.answers import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatMessage,
    PromptLogprobs,
    Usage,
)
from app.api.chat_schemas import ChatCompletionRequest, ChatPrompt, Message
from app.api.delivery import deliver
from app.api.generation import Delta, Generation
from app.api.logprobs import chat_logprobs, prompt_logprobs
from app.api.models import check_name, system_fingerprint
from app.api.sampling import Scores, plan_generation
from app.api.wait_header import WaitHeader
from app.errors import InvalidRequest
from app.service import ServedModel, Service
from app.telemetry.requests import CHAT
from app.text.token_names import TokenNames


@dataclass(frozen=True)
class ChatFormat:
    """What /v1/chat/completions answers with."""

    operation: ClassVar[str] = CHAT

    id: str
    created_s: int
    model: str
    system_fingerprint: str
    request: ChatCompletionRequest
    prompt_token_ids: tuple[int, ...]
    names: TokenNames

    def pieces(self, delta: Delta) -> Iterator[ChatChunkChoice]:
        """The role, once; the text and its tokens, if there are any; the end, with nothing but its reason."""
        if delta.prompt is not None:
            yield ChatChunkChoice(delta.index, ChatMessage(role="assistant", content=""), None)
        scored = delta.tokens and self.request.logprobs
        if delta.text or scored or self.request.return_token_ids:
            message = ChatMessage(content=delta.text)
            yield ChatChunkChoice(delta.index, message, None, self._logprobs(delta), self._token_ids(delta))
        if delta.finish_reason:
            yield ChatChunkChoice(delta.index, ChatMessage(), delta.finish_reason)

    def chunk(self, choices: tuple[ChatChunkChoice, ...], usage: Usage | UnsetType | None) -> ChatCompletion:
        """One chunk of a stream; those with a role tell the prompt's token ids, where they are asked for."""
        begins = any(choice.delta.role is not UNSET for choice in choices)
        return self._object("chat.completion.chunk", choices, usage, tells_prompt=begins)

    def whole(self, finished: Sequence[Delta], usage: Usage) -> ChatCompletion:
        """Every choice with its whole message."""
        choices = tuple(
            ChatChoice(
                delta.index,
                ChatMessage(role="assistant", content=delta.text),
                delta.finish_reason,
                self._logprobs(delta),
                self._token_ids(delta),
            )
            for delta in finished
        )
        scores = self._prompt_logprobs(finished[0])
        return self._object("chat.completion", choices, usage, tells_prompt=True, scores=scores)

    def _logprobs(self, delta: Delta) -> ChatLogprobs | None:
        if not self.request.logprobs:
            return None
        return chat_logprobs(delta.tokens, self.request.top_logprobs or 0, self.names)

    def _token_ids(self, delta: Delta) -> tuple[int, ...] | UnsetType:
        return delta.token_ids if self.request.return_token_ids else UNSET

    def _prompt_logprobs(self, delta: Delta) -> PromptLogprobs | UnsetType:
        count = self.request.prompt_logprobs
        if count is None or delta.prompt is None:
            return UNSET
        return prompt_logprobs(self.prompt_token_ids, delta.prompt.logprobs or (), count, self.names)

    def _object(
        self,
        kind: str,
        choices: tuple[ChatChoice, ...] | tuple[ChatChunkChoice, ...],
        usage: Usage | UnsetType | None,
        *,
        tells_prompt: bool,
        scores: PromptLogprobs | UnsetType = UNSET,
    ) -> ChatCompletion:
        return ChatCompletion(
            id=self.id,
            object=kind,
            created=self.created_s,
            model=self.model,
            system_fingerprint=self.system_fingerprint,
            choices=choices,
            usage=usage,
            prompt_logprobs=scores,
            prompt_token_ids=self.prompt_token_ids if self.request.return_token_ids and tells_prompt else UNSET,
        )


def chat_routes(service: Service) -> APIRouter:
    """The endpoint, served by `service`."""
    routes = APIRouter()

    @routes.post("/v1/chat/completions", response_model=None)
    async def create_chat_completion(body: ChatCompletionRequest, http: Request, wait_s: WaitHeader = None) -> Response:
        """Answer the chat, `n` times."""
        check_name(service, body.model)
        service.engine.check_room(body.n or 1, param="n")
        if body.top_logprobs and not body.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs=true", param="top_logprobs")
        return await deliver(service, http, body, wait_s, functools.partial(_begin, service.model_names[0], body))

    return routes


async def _begin(name: str, body: ChatCompletionRequest, model: ServedModel) -> tuple[Generation, ChatFormat]:
    generation = await asyncio.to_thread(_plan, body, model)
    return generation, ChatFormat(
        id=f"chatcmpl-{body.request_id or uuid.uuid4().hex}",
        created_s=int(time.time()),
        model=name,
        system_fingerprint=system_fingerprint(name, model.dtype),
        request=body,
        prompt_token_ids=generation.prompts[0].token_ids,
        names=model.text.names,
    )


def chat_prompt(body: ChatPrompt, messages: Sequence[Message], model: ServedModel) -> str:
    """The prompt that a chat makes, special tokens included.

    Raises:
        InvalidRequest: The template refuses the chat, or two parameters contradict each other.
    """
    continues = bool(body.continue_final_message)
    if continues and body.add_generation_prompt:
        raise InvalidRequest(
            "continue_final_message contradicts add_generation_prompt: send one of them", param="continue_final_message"
        )
    return model.text.render_chat(
        [message.for_template() for message in messages],
        add_generation_prompt=not continues and body.add_generation_prompt is not False,
        continue_final_message=continues,
        tools=body.tools or None,
        variables=body.chat_template_kwargs or {},
    )


def _plan(body: ChatCompletionRequest, model: ServedModel) -> Generation:
    max_tokens = _max_tokens(body)
    # The template has written the special tokens itself.
    text = chat_prompt(body, body.messages, model)
    prompt = prompts.encoded(model, text, add_special_tokens=bool(body.add_special_tokens))
    return plan_generation(
        body,
        model,
        [prompts.truncated(prompt, body, model, max_tokens)],
        max_tokens=max_tokens,
        scores=Scores(body.top_logprobs or 0 if body.logprobs else None, body.prompt_logprobs),
        param="messages",
        continues=bool(body.continue_final_message),
    )


def _max_tokens(body: ChatCompletionRequest) -> int | None:
    """`max_completion_tokens`, or its old name; None is the rest of the context."""
    if body.max_tokens and body.max_completion_tokens and body.max_tokens != body.max_completion_tokens:
        raise InvalidRequest("max_tokens contradicts max_completion_tokens: send one of them", param="max_tokens")
    return body.max_completion_tokens or body.max_tokens
