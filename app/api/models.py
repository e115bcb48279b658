"""GET /v1/models: under which names the model is served, and which of them a request means."""

from __future__ import annotations

import functools
import hashlib
from importlib.metadata import version

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from app.api.answers import ModelCard, ModelList
from app.errors import ModelNotFound
from app.service import ServedModel, Service


def served_model(service: Service, name: str) -> ServedModel:
    """The model that a request names.

    Raises:
        ModelNotFound: It is not served here.
        NotReady: It is, but not now.
    """
    if name not in service.model_names:
        served = ", ".join(service.model_names)
        raise ModelNotFound(f"the model {name!r} is not served here; served: {served}", param="model")
    return service.ready_model()


@functools.cache
def system_fingerprint(name: str, dtype: str) -> str:
    """Names what computes an answer: the same as long as model, release and dtype are."""
    digest = hashlib.blake2b(f"{name}\0{version('coldstream')}\0{dtype}".encode(), digest_size=5)
    return f"fp_{digest.hexdigest()}"


def model_routes(service: Service) -> APIRouter:
    """The endpoints, served by `service`; 503 until the model's limits are known."""
    routes = APIRouter()

    @routes.get("/v1/models", response_model=None)
    async def list_models() -> Response:
        """Every name."""
        model = service.ready_model()
        return _json(ModelList(data=tuple(_card(service, model, name) for name in service.model_names)))

    # Names may contain slashes.
    @routes.get("/v1/models/{name:path}", response_model=None)
    async def retrieve_model(name: str) -> Response:
        """One name."""
        return _json(_card(service, served_model(service, name), name))

    return routes


def _card(service: Service, model: ServedModel, name: str) -> ModelCard:
    return ModelCard(
        id=name, created=model.created_s, root=service.model_names[0], max_model_len=model.max_model_len_tokens
    )


def _json(value: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
