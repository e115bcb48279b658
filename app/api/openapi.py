"""The OpenAPI document: FastAPI's, with what the endpoints really answer.

Takes the routes and the wire types of answers. FastAPI knows neither the answers, which are msgspec's, nor that a body
that does not validate is a 400.
"""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI

from app.api import answers

_JSON, _EVENTS = "application/json", "text/event-stream"
_REFUSALS = {
    400: "A parameter is unknown, wrong or not honoured, or the body is no JSON object.",
    401: "No valid key.",
    404: "Unknown model.",
    413: "The body is too large.",
    429: "Too many sequences are waiting: see Retry-After.",
    500: "The engine failed on this request.",
    503: "Not ready, draining or failed: see Retry-After.",
    504: "It took too long.",
}
_ERROR_REF = {"$ref": "#/components/schemas/ErrorEnvelope"}


class Error(msgspec.Struct):
    """What went wrong, and with which parameter."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(msgspec.Struct):
    """OpenAI's form of every failure."""

    error: Error


def _chat(name: str, choice: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """A chat's answer with one kind of choices: the wire type has room for both."""
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    for field in msgspec.structs.fields(answers.ChatCompletion):
        kind: Any = tuple[choice, ...] if field.name == "choices" else field.type  # type: ignore[valid-type]
        fields.append((field.name, kind) if field.required else (field.name, kind, field.default))
    return msgspec.defstruct(name, fields, kw_only=True)


def _answers() -> dict[str, type[msgspec.Struct] | None]:
    """What each path answers with; None is any object."""
    return {
        "/v1/models": answers.ModelList,
        "/v1/models/{name}": answers.ModelCard,
        "/v1/completions": answers.Completion,
        "/v1/chat/completions": _chat("ChatCompletion", answers.ChatChoice),
        "/tokenize": answers.Tokenized,
        "/detokenize": answers.Detokenized,
        "/tokenizer_info": None,
        "/version": answers.Version,
    }


class DocumentedApi(FastAPI):
    """A FastAPI whose document says what is true."""

    def openapi(self) -> dict[str, Any]:
        """The document, made once."""
        if self.openapi_schema is None:
            self.openapi_schema = _corrected(super().openapi())
        return self.openapi_schema


def _corrected(document: dict[str, Any]) -> dict[str, Any]:
    known = _answers()
    chunk = _chat("ChatCompletionChunk", answers.ChatChunkChoice)
    types = [kind for kind in known.values() if kind is not None]
    references, schemas = msgspec.json.schema_components(
        [*types, chunk, ErrorEnvelope], ref_template="#/components/schemas/{name}"
    )
    of_type = dict(zip(types, references, strict=False))
    for path, operations in document["paths"].items():
        kind = known[path]
        content: dict[str, Any] = {_JSON: {"schema": {"type": "object"} if kind is None else of_type[kind]}}
        if path.endswith("completions"):
            content[_EVENTS] = {}  # this version of OpenAPI has no word for what is in an event
        for operation in operations.values():
            operation["responses"] = {"200": {"description": "The answer.", "content": content}} | _refusals()
    document["components"]["schemas"] |= schemas
    for unused in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(unused, None)
    return document


def _refusals() -> dict[str, Any]:
    return {
        str(status): {"description": why, "content": {_JSON: {"schema": _ERROR_REF}}}
        for status, why in _REFUSALS.items()
    }
