"""The outermost ASGI application: probes and the page are answered here and now, everything else by what is behind it.

Takes a service; metrics and API are handed in once they are imported (FastAPI costs 0.3 to 1 s of a cold start,
prometheus-client 0.05, and a kubelet must not wait for them). Knows no route of the API.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from app.api.page import PAGE, page_file
from app.api.probes import METRICS, PROBES, Answer
from app.errors import NotReady
from app.service import Service

# As in the ASGI specification; importing starlette for the names would cost what this module saves.
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
# What the header Accept says, to a body and its content type.
Render = Callable[[str], tuple[bytes, str]]
# Of each request that comes before the API the HTTP server reads 64 KiB ahead: 16 MiB in all.
_MOST_EARLY = 256


class Front:
    """Answers GET and HEAD of the probes and the page; scrapes wait for `measure_with`, so many other requests for `serve_with`.

    `in_flight` is how many requests the API is answering.
    """

    def __init__(self, service: Service):
        self._service = service
        loop = asyncio.get_running_loop()
        self._metrics: asyncio.Future[Render] = loop.create_future()
        self._application: asyncio.Future[Application] = loop.create_future()
        self._early = 0
        self.in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def idle(self) -> None:
        """Return once the API answers nobody."""
        await self._idle.wait()

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
                await self._send_answer(probe(self._service), send)
                return
            if scope["path"] in PAGE:
                await self._send_answer(page_file(scope["path"]), send)
                return
            if scope["path"] == METRICS:
                render = await asyncio.shield(self._metrics)
                await self._send_answer(_metrics(render, scope), send)
                return
        if not self._application.done():
            if self._early >= _MOST_EARLY:
                await self.refuse(scope, receive, send)
                return
            await self._import_ended()
        await self._serve(self._application.result(), scope, receive, send)

    async def refuse(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Send the client elsewhere, or back: an application for a server that will have no other any more."""
        await self._send_answer(_not_now(), send)

    async def _import_ended(self) -> None:
        self._early += 1
        try:
            await asyncio.shield(self._application)
        finally:
            self._early -= 1

    async def _serve(self, application: Application, scope: Scope, receive: Receive, send: Send) -> None:
        self.in_flight += 1
        self._idle.clear()
        try:
            await application(scope, receive, send)
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._idle.set()

    async def _send_answer(self, answer: Answer, send: Send) -> None:
        headers = [
            (b"content-type", answer.content_type),
            (b"content-length", b"%d" % len(answer.body)),
            *answer.headers,
        ]
        if self._service.is_going_away:  # the connection ends with the server: better before a probe than in one
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})


def _metrics(render: Render, scope: Scope) -> Answer:
    accept = b",".join(value for name, value in scope["headers"] if name == b"accept")
    body, content_type = render(accept.decode("latin-1"))
    return Answer(200, body, content_type=content_type.encode())


def _not_now() -> Answer:
    message = "the server is starting, and too many requests wait for it, or it is shutting down: try again"
    error = {"message": message, "type": NotReady.type, "param": None, "code": NotReady.code}
    return Answer(NotReady.status, msgspec.json.encode({"error": error}), ((b"retry-after", b"1"),))
