"""The outermost ASGI application: probes are answered here and now, everything else by the API behind it.

Takes a service; the API is handed in once it is imported (FastAPI costs 0.3 to 1 s of a cold start, and a
kubelet must not wait for it). Knows no route of the API.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from app.api.probes import PROBES, Answer
from app.service import Service

# As in the ASGI specification; importing starlette for the names would cost what this module saves.
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class Front:
    """Answers GET and HEAD of the probes; other requests wait until `serve_with` was called."""

    def __init__(self, service: Service):
        self._service = service
        self._application: asyncio.Future[Application] = asyncio.get_running_loop().create_future()

    def serve_with(self, application: Application) -> None:
        """From now on the API answers."""
        self._application.set_result(application)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        probe = PROBES.get(scope["path"]) if scope["type"] == "http" else None
        if probe is not None and scope["method"] in ("GET", "HEAD"):
            await _send_answer(probe(self._service), send)
            return
        application = await asyncio.shield(self._application)
        await application(scope, receive, send)


async def _send_answer(answer: Answer, send: Send) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(answer.body)),
        *answer.headers,
    ]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
