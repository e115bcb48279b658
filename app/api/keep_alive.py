"""Comments in an event stream while it has nothing to say, so that no proxy takes it for dead.

Takes an ASGI `send`, gives one. Knows nothing of the stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.types import Message, Send

_COMMENT = b": keep-alive\n\n"


@asynccontextmanager
async def kept_alive(send: Send, interval_s: float | None) -> AsyncGenerator[Send, None]:
    """A `send` behind which a comment follows after each `interval_s` of silence; with None, `send` itself.

    What ends the response is sent once this context is left.
    """
    if interval_s is None:
        yield send
        return
    loop = asyncio.get_running_loop()
    last_sent_s = loop.time()

    async def send_and_note(message: Message) -> None:
        nonlocal last_sent_s
        last_sent_s = loop.time()
        await send(message)

    async def comment() -> None:
        while True:
            await asyncio.sleep(last_sent_s + interval_s - loop.time())
            if loop.time() >= last_sent_s + interval_s:
                await send_and_note({"type": "http.response.body", "body": _COMMENT, "more_body": True})

    commenting = asyncio.create_task(comment())
    try:
        yield send_and_note
    finally:
        commenting.cancel()
        await asyncio.gather(commenting, return_exceptions=True)
