"""A child process that is replaced when it dies, and the channel to whichever lives.

It is replaced three times within ten minutes, the first time at once, then after a while. Takes callbacks, gives
messages. Knows nothing of what a new child has to be told: that is `on_replaced`'s.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from app.channel import Channel, OnMessage
from app.child import Child
from streaming.errors import ErrorReport

logger = logging.getLogger(__name__)

# Before each restart; as many as there are within the window.
_BACKOFF_S = (0.0, 1.0, 4.0)
_WINDOW_S = 600.0
# A killed process gives back tens of gigabytes of GPU memory, and its successor needs them.
_EXIT_S = 30.0
_POLL_S = 0.01


class KeptChild:
    """One role, over as many processes as it takes.

    Args:
        child: The first process.
        incoming: The union of message types that it sends.
        respawn: Starts another one.
        on_message: Called with each message and the descriptors that came with it.
        on_died: Called at once when it dies before its work is done, with what it did ("died", or the reason of `kill`).
        on_replaced: Called when another process has taken its place.
        on_lost: Called with the reason when none will.
        on_error: Called when one of the others raised.
    """

    def __init__(
        self,
        child: Child,
        incoming: Any,
        *,
        respawn: Callable[[], Child],
        on_message: OnMessage,
        on_died: Callable[[str], None],
        on_replaced: Callable[[], None],
        on_lost: Callable[[ErrorReport], None],
        on_error: Callable[[Exception], None],
    ):
        self.restarts = 0
        self._incoming = incoming
        self._respawn = respawn
        self._on_message = on_message
        self._on_died = on_died
        self._on_replaced = on_replaced
        self._on_lost = on_lost
        self._on_error = on_error
        self._retired = False
        self._deaths_s: deque[float] = deque(maxlen=len(_BACKOFF_S) + 1)
        self._following: asyncio.Task[None] | None = None
        self._watch(child)

    def send(self, message: msgspec.Struct, fds: Sequence[int] = ()) -> None:
        """Queue a message to the process that lives now."""
        self._channel.send(message, fds)

    def retire(self) -> None:
        """Its work is done: it may end, and is not replaced."""
        self._retired = True

    def kill(self, reason: str) -> None:
        """End one that hangs, so that another takes its place; `reason` says what it did.

        Its socket's end is not waited for: one that is stuck in the kernel keeps that open.
        """
        if self._is_ending:
            return
        self._reason = reason
        self._channel.close()
        self._ended()

    def end(self) -> None:
        """End it and replace it no more; it may still be going when this returns."""
        self.retire()
        if self._following is not None:
            self._following.cancel()
        self._channel.close()
        self._child.end()

    def close(self) -> None:
        """End it, and wait until it is gone."""
        self.end()
        self._child.kill()

    def _watch(self, child: Child) -> None:
        self._child = child
        self._is_ending = False
        self._reason = "died"
        self._channel = Channel(
            child, self._incoming, on_message=self._on_message, on_closed=self._ended, on_error=self._on_error
        )

    def _ended(self) -> None:
        self._is_ending = True
        self._child.end()
        if not self._retired:
            self._on_died(self._reason)
        self._following = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        """Wait for its end, and put another one in its place unless its work was done."""
        try:
            is_gone = await self._exited()
            if self._retired:
                return
            delay_s = self._backoff_s()
            if not is_gone:
                self._give_up("does not end although it was killed: the driver may be stuck, restart the node")
            elif delay_s is None:
                self._give_up(
                    f"died {len(self._deaths_s)} times within ten minutes: its own messages, if it left any, are above"
                )
            else:
                await self._replace(delay_s)
        except Exception as error:  # noqa: BLE001 - nobody awaits this task
            self._on_error(error)

    async def _exited(self) -> bool:
        deadline_s = time.monotonic() + _EXIT_S
        # Not every sandbox has pidfds, and a waiting thread would delay our own end.
        while self._child.process.poll() is None and time.monotonic() < deadline_s:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)
        return self._child.process.returncode is not None

    def _backoff_s(self) -> float | None:
        """Seconds to wait before the next restart; None where there were too many."""
        now_s = time.monotonic()
        self._deaths_s.append(now_s)
        recent = sum(died_s > now_s - _WINDOW_S for died_s in self._deaths_s)
        return _BACKOFF_S[recent - 1] if recent <= len(_BACKOFF_S) else None

    async def _replace(self, delay_s: float) -> None:
        status, wait = self._child.process.returncode, f" in {delay_s:g} s" if delay_s else ""
        logger.warning("%s %s (exit %s): starting another one%s", self._child.module, self._reason, status, wait)
        await asyncio.sleep(delay_s)
        self.restarts += 1
        self._watch(self._respawn())
        self._on_replaced()

    def _give_up(self, what: str) -> None:
        self.retire()
        self._on_lost(ErrorReport("ProcessLost", f"{self._child.module} {what}", 6))
