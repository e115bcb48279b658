"""What every request passes on its way in: a clock, a request id, the key, the size of its body.

Plain ASGI rather than Starlette's BaseHTTPMiddleware, which hides disconnects from the routes. Knows no
route; probes never come here.
"""

from __future__ import annotations

import hmac
import re
import uuid
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.refusal import refuse
from app.errors import RequestTooLarge, ServiceError, Unauthorized
from app.service import Service
from app.telemetry.http_requests import HttpRequest
from app.telemetry.logs import current_trace
from streaming.clock import boottime_s

# Others are counted as one: a client may invent any number of them.
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"))
_REQUEST_ID = re.compile(r"[!-~]{1,128}")


class Watching:
    """Begins every request's trace, notes when it came and how it was answered, and tells the observers.

    The outermost one, whose clock the others share (`scope["state"]["arrived_s"]`, beside `"trace"`). It wraps no
    message: a streamed token passes none of this.

    Args:
        service: Begins traces and has the observers.
    """

    def __init__(self, app: ASGIApp, *, service: Service):
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        arrived_s = boottime_s()
        headers = Headers(scope=scope)
        trace = self._service.begin_trace(headers.get("traceparent", ""), headers.get("tracestate", ""))
        current_trace.set(trace)
        # Until `AnswerHeaders` sees an answer begin, it is what an exception becomes.
        state.update(arrived_s=arrived_s, status=500, trace=trace)
        active = _method(scope), scope["scheme"]
        self._service.active_requests[active] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._service.active_requests[active] -= 1
            self._tell(scope)

    def _tell(self, scope: Scope) -> None:
        state = scope["state"]
        request = HttpRequest(
            method=_method(scope),
            route=getattr(scope.get("route"), "path", ""),
            path=scope["path"],
            status=state["status"],
            start_s=state["arrived_s"],
            end_s=boottime_s(),
            scheme=scope["scheme"],
            client_address=scope["client"][0] if scope.get("client") else None,
            request_id=state.get("request_id"),
            trace=state["trace"],
        )
        for observe in self._service.http_observers:
            observe(request)


def _method(scope: Scope) -> str:
    method: str = scope["method"]
    return method if method in _METHODS else "_OTHER"


class AnswerHeaders:
    """Gives every request an id (its own X-Request-Id, where it has one) and returns it in the answer.

    A server that is going away closes the connection behind its answer, so that the next request goes to another.

    Args:
        service: Knows whether it is going away.
    """

    def __init__(self, app: ASGIApp, *, service: Service):
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = Headers(scope=scope).get("x-request-id", "")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope["state"]["status"] = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if self._service.is_going_away:
                    headers["connection"] = "close"
            await send(message)

        await self._app(scope, receive, send_with_headers)


class Admission:
    """Refuses a request without a valid key, or with too large a body, before any route sees it.

    Args:
        api_keys: The valid keys; none means that none is asked for.
        max_body_bytes: The largest body that is read.
    """

    def __init__(self, app: ASGIApp, *, api_keys: Sequence[str], max_body_bytes: int):
        self._app = app
        self._api_keys = [key.encode() for key in api_keys]
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check_key(headers.get("authorization", ""))
            body = await self._read_body(headers, receive)
        except ClientDisconnect:
            return
        except ServiceError as exc:
            await refuse(exc, scope, receive, send)
            return
        await self._app(scope, _replay(body, receive), send)

    def _check_key(self, authorization: str) -> None:
        if not self._api_keys:
            return
        scheme, _, given = authorization.partition(" ")
        # Every key is compared, each in constant time, so that the answer's time tells nothing.
        matches = [hmac.compare_digest(given.strip().encode("latin-1"), key) for key in self._api_keys]
        if scheme.lower() != "bearer" or not any(matches):
            raise Unauthorized("a valid API key is needed: send it as `Authorization: Bearer KEY`")

    async def _read_body(self, headers: Headers, receive: Receive) -> bytes:
        announced = headers.get("content-length", "")
        body = bytearray()
        more = True
        while more:
            if max(len(body), int(announced) if announced.isdecimal() else 0) > self._max_body_bytes:
                raise RequestTooLarge(f"the body is larger than {self._max_body_bytes} bytes")
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            body += message.get("body", b"")
            more = message.get("more_body", False)
        return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read, then whatever comes after it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replaying() -> Message:
        return messages.pop() if messages else await receive()

    return replaying
