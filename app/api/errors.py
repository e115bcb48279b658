"""Every failure as OpenAI's error envelope: one table from exceptions to statuses.

Takes exceptions, gives responses `{"error": {"message", "type", "param", "code"}}`. A request that does
not validate is a 400, never a 422.
"""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from app.errors import DeadlineExceeded, InvalidRequest, ServiceError

# nginx's number for it; nobody is left to read it but the access log.
_CLIENT_CLOSED_REQUEST = 499


def install(app: FastAPI) -> None:
    """Have `app` answer every exception by the table below."""
    table: dict[type[Exception], Callable[[Exception], Response]] = {
        ServiceError: error_response,
        RequestValidationError: lambda exc: error_response(_invalid(exc)),
        HTTPException: _http_response,
        ClientDisconnect: lambda _: Response(status_code=_CLIENT_CLOSED_REQUEST),
        Exception: error_response,
    }
    for kind, respond in table.items():
        app.add_exception_handler(kind, _handler(respond))


def error_response(exc: Exception) -> Response:
    """The envelope of `exc`, with its status and, where it says when to come back, Retry-After."""
    error = _public(exc)
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, DeadlineExceeded):
        headers["x-should-retry"] = "false"  # which the official client obeys
    return Response(error_body(error), error.status, headers, media_type="application/json")


def error_body(exc: Exception) -> bytes:
    """The envelope of `exc` as JSON."""
    error = _public(exc)
    return _envelope(error.message, error.type, error.param, error.code)


def _public(exc: Exception) -> ServiceError:
    """`exc` as a client may see it: what was not meant for clients keeps its message to itself."""
    return exc if isinstance(exc, ServiceError) else ServiceError("the server failed on this request; see its log")


def _envelope(message: str, kind: str, param: str | None, code: str | None) -> bytes:
    # json rather than msgspec: a message may quote a client's unpaired surrogate, which only ASCII survives.
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}}).encode()


def _handler(respond: Callable[[Exception], Response]) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def handle(request: Request, exc: Exception) -> Response:
        response = respond(exc)
        # What nobody expected is answered outside of the middleware that adds the id to all other answers.
        response.headers["x-request-id"] = request.state.request_id
        return response

    return handle


def _http_response(exc: Exception) -> Response:
    """Unknown paths, wrong methods and unreadable bodies, as the framework raises them."""
    assert isinstance(exc, HTTPException)
    body = _envelope(str(exc.detail), InvalidRequest.type, None, None)
    return Response(body, exc.status_code, exc.headers, media_type="application/json")


def _invalid(exc: Exception) -> InvalidRequest:
    """The first thing that is wrong with a body, named by its path."""
    assert isinstance(exc, RequestValidationError)
    error = exc.errors()[0]
    if error["type"] == "json_invalid":
        return InvalidRequest(f"the body is not JSON: {error['ctx']['error']} at character {error['loc'][1]}")
    path = _path(error["loc"][1:])
    if not path:
        return InvalidRequest("the body must be a JSON object with Content-Type: application/json")
    if error["type"] == "extra_forbidden":
        return InvalidRequest(f"unknown parameter: {path}", param=path)
    return InvalidRequest(f"{path}: {error['msg']}", param=path)


def _path(location: tuple[str | int, ...]) -> str:
    """`("messages", 0, "content")` as `messages[0].content`."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    return "".join(steps).removeprefix(".")
