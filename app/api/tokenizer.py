"""/tokenize, /detokenize, /tokenizer_info and /version, as vLLM has them.

Takes text or messages, gives token ids, and back. Knows no engine.
"""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from app.api.answers import Detokenized, Tokenized, Version
from app.api.chat import chat_prompt
from app.api.chat_schemas import ChatPrompt, Messages
from app.api.fields import Wire
from app.api.models import awaited_model, check_name
from app.api.wait_header import WaitHeader
from app.errors import InvalidRequest
from app.service import ServedModel, Service


class TokenizeRequest(ChatPrompt):
    """POST /tokenize: a prompt, or what makes the prompt of a chat."""

    messages: Messages | None = None
    model: str | None = None
    prompt: str | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Wire):
    """POST /detokenize."""

    tokens: list[Annotated[int, Field(ge=0, lt=2**31)]]
    model: str | None = None


def tokenizer_routes(service: Service) -> APIRouter:
    """The endpoints, served by `service`; all but /version need the model ready."""
    routes = APIRouter()

    @routes.post("/tokenize", response_model=None)
    async def tokenize(body: TokenizeRequest, http: Request, wait_s: WaitHeader = None) -> Response:
        """The token ids that a completion or a chat would begin with."""
        _check_name(service, body.model)
        model = await awaited_model(service, http, wait_s)
        tokens = await asyncio.to_thread(_tokens, body, model)
        strings = model.text.token_strings(tokens) if body.return_token_strs else None
        return _json(Tokenized(len(tokens), model.max_model_len_tokens, tokens, strings))

    @routes.post("/detokenize", response_model=None)
    async def detokenize(body: DetokenizeRequest, http: Request, wait_s: WaitHeader = None) -> Response:
        """The text of token ids, special ones included."""
        _check_name(service, body.model)
        model = await awaited_model(service, http, wait_s)
        text = await asyncio.to_thread(model.text.decode, body.tokens, skip_special_tokens=False)
        return _json(Detokenized(text))

    @routes.get("/tokenizer_info", response_model=None)
    async def tokenizer_info(http: Request, wait_s: WaitHeader = None) -> Response:
        """The checkpoint's tokenizer_config.json and special tokens."""
        model = await awaited_model(service, http, wait_s)
        return _json({"tokenizer_class": "unknown"} | dict(model.text.config))

    @routes.get("/version", response_model=None)
    async def show_version() -> Response:
        """The release of this server."""
        return _json(Version(version("coldstream")))

    return routes


def _check_name(service: Service, name: str | None) -> None:
    if name:
        check_name(service, name)


def _tokens(body: TokenizeRequest, model: ServedModel) -> tuple[int, ...]:
    if body.prompt is not None and body.messages is None:
        return model.text.encode(body.prompt, add_special_tokens=body.add_special_tokens is not False)
    if body.messages is not None and body.prompt is None:
        prompt = chat_prompt(body, body.messages, model)
        return model.text.encode(prompt, add_special_tokens=bool(body.add_special_tokens))
    raise InvalidRequest("send either prompt or messages", param="prompt")


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
