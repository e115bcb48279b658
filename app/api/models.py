"""GET /v1/models: under which names the model is served, and which of them a request means."""

from __future__ import annotations

import functools
import hashlib
from importlib.metadata import version

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.answers import ModelCard, ModelList
from app.api.sse import unless_disconnected
from app.api.wait_header import WaitHeader
from app.errors import ModelNotFound
from app.service import ServedModel, Service


def check_name(service: Service, name: str) -> None:
    """Whether a model of this name is served here, ready or not.

    Raises:
        ModelNotFound: It is not.
    """
    if name not in service.model_names:
        served = ", ".join(service.model_names)
        raise ModelNotFound(f"the model {name!r} is not served here; served: {served}", param="model")


async def awaited_model(service: Service, http: Request, wait_s: float | None) -> ServedModel:
    """The model, once it is ready, for an answer that is not streamed.

    Raises:
        NotReady: As `Service.model_within`.
        ClientDisconnect: The client went away first.
    """
    return await unless_disconnected(http.receive, service.model_within(wait_s))


@functools.cache
def system_fingerprint(name: str, dtype: str) -> str:
    """Names what computes an answer: the same as long as model, release and dtype are."""
    digest = hashlib.blake2b(f"{name}\0{version('coldstream')}\0{dtype}".encode(), digest_size=5)
    return f"fp_{digest.hexdigest()}"


def model_routes(service: Service) -> APIRouter:
    """The endpoints, served by `service`; they tell the model's limits, so they need it ready."""
    routes = APIRouter()

    @routes.get("/v1/models", response_model=None)
    async def list_models(http: Request, wait_s: WaitHeader = None) -> Response:
        """Every name."""
        model = await awaited_model(service, http, wait_s)
        return _json(ModelList(data=tuple(_card(service, model, name) for name in service.model_names)))

    # Names may contain slashes.
    @routes.get("/v1/models/{name:path}", response_model=None)
    async def retrieve_model(name: str, http: Request, wait_s: WaitHeader = None) -> Response:
        """One name."""
        check_name(service, name)
        return _json(_card(service, await awaited_model(service, http, wait_s), name))

    return routes


def _card(service: Service, model: ServedModel, name: str) -> ModelCard:
    return ModelCard(
        id=name, created=model.created_s, root=service.model_names[0], max_model_len=model.max_model_len_tokens
    )


def _json(value: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
