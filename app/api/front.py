"""The outermost ASGI application: probes and the page are answered here and now, everything else by what is behind it.

Takes a service; metrics and API are handed in once they are imported (FastAPI costs 0.3 to 1 s of a cold start,
prometheus-client 0.05, and a kubelet must not wait for them). Knows no route of the API.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from app.api.page import PAGE, page_file
from app.api.probes import METRICS, PROBES, Answer
from app.service import Service

# As in the ASGI specification; importing starlette for the names would cost what this module saves.
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
# What the header Accept says, to a body and its content type.
Render = Callable[[str], tuple[bytes, str]]


class Front:
    """Answers GET and HEAD of the probes and the page; scrapes wait for `measure_with`, other requests for `serve_with`."""

    def __init__(self, service: Service):
        self._service = service
        loop = asyncio.get_running_loop()
        self._metrics: asyncio.Future[Render] = loop.create_future()
        self._application: asyncio.Future[Application] = loop.create_future()

    def measure_with(self, render: Render) -> None:
        """From now on /metrics answers."""
        self._metrics.set_result(render)

    def serve_with(self, application: Application) -> None:
        """From now on the API answers."""
        self._application.set_result(application)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
            probe = PROBES.get(scope["path"])
            if probe is not None:
                await _send_answer(probe(self._service), send)
                return
            if scope["path"] in PAGE:
                await _send_answer(page_file(scope["path"]), send)
                return
            if scope["path"] == METRICS:
                render = await asyncio.shield(self._metrics)
                await _send_answer(_metrics(render, scope), send)
                return
        application = await asyncio.shield(self._application)
        await application(scope, receive, send)


def _metrics(render: Render, scope: Scope) -> Answer:
    accept = b",".join(value for name, value in scope["headers"] if name == b"accept")
    body, content_type = render(accept.decode("latin-1"))
    return Answer(200, body, content_type=content_type.encode())


async def _send_answer(answer: Answer, send: Send) -> None:
    headers = [
        (b"content-type", answer.content_type),
        (b"content-length", b"%d" % len(answer.body)),
        *answer.headers,
    ]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
