"""What kubelet, load balancers and people ask the server about itself.

Takes the lifecycle and the ledger, gives their state at this moment. Answers from the first second, never
waits for anything, needs no key.
"""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from app.lifecycle import State
from app.service import Service


def probe_routes(service: Service) -> APIRouter:
    """The probes of `service`."""
    routes = APIRouter()
    lifecycle = service.lifecycle

    @routes.get("/livez", response_model=None)
    async def live() -> Response:
        """200 while the process can work, also while it loads or drains."""
        return _json(503 if lifecycle.state is State.FAILED else 200, {"state": lifecycle.state})

    @routes.get("/health", response_model=None)
    @routes.get("/readyz", response_model=None)
    async def ready() -> Response:
        """200 once loaded and warm, else 503 with how far it is and when to ask again."""
        if lifecycle.state is State.READY:
            return _json(200, lifecycle.health())
        return _json(503, lifecycle.health(), {"retry-after": str(lifecycle.retry_after_s())})

    @routes.get("/startupz", response_model=None)
    async def startup() -> Response:
        """The startup ledger so far."""
        return _json(200, {"state": lifecycle.state, **service.ledger.as_dict()})

    return routes


def _json(status: int, value: object, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")
