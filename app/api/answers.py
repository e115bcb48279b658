"""OpenAI's wire types of answers, and nothing else.

msgspec rather than pydantic: a stream writes one of these per token. UNSET fields are left out.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one request; a prompt counts once, whatever `n` is."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionChoice(msgspec.Struct, frozen=True):
    """One text, or in a stream one piece of it."""

    index: int
    text: str
    finish_reason: str | None
    logprobs: None = None


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/completions: the whole answer, and each chunk of a stream."""

    id: str
    created: int
    model: str
    choices: tuple[CompletionChoice, ...]
    usage: Usage | UnsetType | None = UNSET
    object: str = "text_completion"


class ChatMessage(msgspec.Struct, frozen=True):
    """The assistant's message; in a stream, what is new of it."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChoice(msgspec.Struct, frozen=True):
    """One whole message."""

    index: int
    message: ChatMessage
    finish_reason: str | None
    logprobs: None = None


class ChatChunkChoice(msgspec.Struct, frozen=True):
    """One piece of one message."""

    index: int
    delta: ChatMessage
    finish_reason: str | None
    logprobs: None = None


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/chat/completions: the whole answer, and each chunk of a stream."""

    id: str
    object: str
    created: int
    model: str
    choices: tuple[ChatChoice | ChatChunkChoice, ...]
    usage: Usage | UnsetType | None = UNSET


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """One name under which the model is served."""

    id: str
    created: int
    root: str
    max_model_len: int
    owned_by: str = "coldstream"
    object: str = "model"


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """GET /v1/models."""

    data: tuple[ModelCard, ...]
    object: str = "list"
