"""An answer to a request whose body nobody has read to its end.

Takes an error and the request's channel. Knows no reason to refuse.
"""

from __future__ import annotations

import asyncio
import contextlib

from starlette.types import Message, Receive, Scope, Send

from app.api.errors import error_response

# As nginx's lingering_timeout and lingering_time, but shorter: whom we refuse is not waited for.
_SILENCE_S = 1.0
_IN_ALL_S = 10.0


async def refuse(exc: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the envelope of `exc`, then close the connection; the rest of the body is read and dropped.

    Closed with bytes of it unread, the connection would be reset, and most clients would lose the answer.
    """

    async def keep_open(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "more_body": True}
        await send(message)

    response = error_response(exc)
    response.headers["connection"] = "close"
    await response(scope, receive, keep_open)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_IN_ALL_S):
            await _drop_body(receive)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drop_body(receive: Receive) -> None:
    more = True
    while more:
        async with asyncio.timeout(_SILENCE_S):
            message = await receive()
        more = message["type"] == "http.request" and message.get("more_body", False)
