"""Requests that wait for one identity's token: the first that gets none ends those that wait behind it.

obstore has one of them ask at a time, each for its own full time: eleven reads of a checkpoint's metadata would hear of an authority
that is silent after eleven timeouts, and then try again. Takes requests of any thread, which run on one event loop of the process.
Knows no store.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

# Four attempts to connect, or one that is connected and reads nothing.
PATIENCE_S = 20.0


class TokenFailure(NamedTuple):
    """What an error says of a token: whether it is about one, and whether nobody answered."""

    is_one: bool
    is_silence: bool


class NoToken(Exception):
    """There is no token, in the words of the request that asked for it; no other will ask if it `is_final`."""

    def __init__(self, text: str, is_final: bool):
        super().__init__(text)
        self.text = text
        self.is_final = is_final


class TokenQueue:
    """The requests that need one identity's token.

    Args:
        judge: What an error says of the token.
        patience_s: How long silence is met with another request, since the first one that got no token.
    """

    def __init__(self, judge: Callable[[Exception], TokenFailure], patience_s: float):
        self._judge = judge
        self._patience_s = patience_s
        # Chosen here, before there are threads that could each get one of their own.
        self._loop = _loop()
        # Of its thread, all of them.
        self._waiting: set[asyncio.Task[Any]] = set()
        self._without_since_s: float | None = None
        self._failure: NoToken | None = None

    def call(self, request: Coroutine[Any, Any, T]) -> T:
        """What the request gives.

        Raises:
            NoToken: This request got no token, or one that was under way at the same time.
        """
        return asyncio.run_coroutine_threadsafe(self._call(request), self._loop).result()

    async def _call(self, request: Coroutine[Any, Any, T]) -> T:
        if self._failure is not None and self._failure.is_final:
            request.close()
            raise self._again(self._failure)
        start_s = time.monotonic()
        task = asyncio.ensure_future(request)
        self._waiting.add(task)
        try:
            answer = await task
        except asyncio.CancelledError:
            if self._failure is None:
                raise
            raise self._again(self._failure) from None
        except Exception as error:
            if not (found := self._judge(error)).is_one:
                raise
            raise self._failed(task, str(error), start_s, found.is_silence) from error
        finally:
            self._waiting.discard(task)
        self._without_since_s = None
        return answer

    def _failed(self, task: asyncio.Task[Any], text: str, start_s: float, is_silence: bool) -> NoToken:
        """End all that wait as this task has ended."""
        if self._without_since_s is None:
            self._without_since_s = start_s
        is_final = is_silence and time.monotonic() - self._without_since_s >= self._patience_s
        self._failure = NoToken(text, is_final)
        for other in self._waiting - {task}:
            other.cancel()
        return self._failure

    @staticmethod
    def _again(failure: NoToken) -> NoToken:
        return NoToken(failure.text, failure.is_final)


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """A loop that runs as long as the process, so that no answer comes after it."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="token-queue", daemon=True).start()
    return loop
