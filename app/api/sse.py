"""Token stream to event stream, with an honest ending.

Takes chunks as bytes, gives `data:` frames. A stream that completes ends in `[DONE]`; one that fails after
its headers ends in an error and no `[DONE]`; one whose client goes away is closed at once. Knows nothing
of what is in a chunk.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.errors import error_body
from app.api.keep_alive import kept_alive
from app.errors import ServiceError

_DONE = b"[DONE]"

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class EventStream(Response):
    """A response that sends chunks as they come, those that come together with one write.

    Args:
        first: The first chunks. They were awaited before there are headers, so that whatever fails until then
            still has an HTTP status; but only as long as a stream may be silent.
        rest: The other chunks; always closed. The next ones are asked for when the client has taken enough of these.
        keep_alive_s: Seconds of silence after which a comment is sent; None sends none.
    """

    media_type = "text/event-stream"

    def __init__(
        self, first: Awaitable[list[bytes]], rest: AsyncGenerator[list[bytes], None], keep_alive_s: float | None
    ):
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._first = first
        self._rest = rest
        self._keep_alive_s = keep_alive_s

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything, or stop as soon as the client is gone."""
        try:
            await unless_disconnected(receive, self._send_all(send))
        except ClientDisconnect:
            return

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._rest), kept_alive(send, self._keep_alive_s) as sending:
            await _send_frames(sending, [await self._send_chunks(sending)])
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_chunks(self, send: Send) -> bytes:
        """Send the chunks; returns the one that ends the stream."""
        try:
            await _send_frames(send, await self._first)
            async for chunks in self._rest:
                await _send_frames(send, chunks)
        except ServiceError as exc:
            return error_body(exc)
        except Exception as exc:  # noqa: BLE001 - logged, and the client must learn of it
            _log.exception("a stream failed after its headers")
            return error_body(exc)
        return _DONE


async def open_event_stream(
    receive: Receive, chunks: AsyncGenerator[list[bytes], None], keep_alive_s: float | None
) -> EventStream:
    """Await the first chunks, for `keep_alive_s` at most, and answer with the stream.

    Raises:
        ClientDisconnect: Nobody waits for it any more; `chunks` is closed.
    """
    first = asyncio.ensure_future(anext(chunks))
    try:
        await unless_disconnected(receive, asyncio.wait({first}, timeout=keep_alive_s))
        if first.done():
            first.result()  # raises what there is to raise, while there is no status yet
    except BaseException:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await chunks.aclose()
        raise
    return EventStream(first, chunks, keep_alive_s)


async def unless_disconnected(receive: Receive, work: Awaitable[_Result]) -> _Result:
    """Await `work`, but cancel it the moment the client goes away.

    Args:
        receive: The request's, its body already read.
        work: What the client waits for.

    Raises:
        ClientDisconnect: The client went away first.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_frames(send: Send, chunks: list[bytes]) -> None:
    body = b"".join([b"data: %b\n\n" % chunk for chunk in chunks])
    await send({"type": "http.response.body", "body": body, "more_body": True})
