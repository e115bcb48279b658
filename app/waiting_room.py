"""Requests that came before the model was ready: so many of them wait for it, and go in as they came.

Takes the lifecycle and a bound, gives each request its turn or its refusal. Knows no HTTP, no model and nothing of what
waits: whoever is cancelled has left.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from app.errors import NotReady
from app.lifecycle import Lifecycle, State

# Why a request was refused, as the metrics have it.
NO_WAIT, QUEUE_FULL, TIMEOUT, STOPPED = REASONS = ("no_wait", "queue_full", "timeout", "stopped")
_STOPPED = frozenset((State.DRAINING, State.FAILED))


class WaitingRoom:
    """The queue before a ready server.

    Args:
        lifecycle: What they wait for.
        max_requests: How many may wait at once.
    """

    def __init__(self, lifecycle: Lifecycle, *, max_requests: int):
        self._lifecycle = lifecycle
        self._max_requests = max_requests
        self._turn = asyncio.Lock()  # fair: only the first one looks at the lifecycle, so nobody overtakes
        self.held = 0
        self.refused: Counter[str] = Counter(dict.fromkeys(REASONS, 0))

    async def until_ready(self, wait_s: float) -> None:
        """Return once the server is ready, at once if it is; those that wait return in the order of their calls.

        Raises:
            NotReady: There is no room, `wait_s` seconds were too few, or the server is going away.
        """
        if self._lifecycle.state is State.READY:
            return
        self._check_entry(wait_s)
        self.held += 1
        try:
            async with asyncio.timeout(wait_s), self._turn:
                await self._ready()
        except TimeoutError as exc:
            raise self._refusal(TIMEOUT, f" after {wait_s:g} s") from exc
        finally:
            self.held -= 1

    def _check_entry(self, wait_s: float) -> None:
        self._check_running()
        if wait_s <= 0:
            raise self._refusal(NO_WAIT)
        if self.held >= self._max_requests:
            raise self._refusal(QUEUE_FULL, f", and {self.held} requests wait for it already")

    async def _ready(self) -> None:
        while self._lifecycle.state is not State.READY:
            self._check_running()
            await self._lifecycle.changed()

    def _check_running(self) -> None:
        if self._lifecycle.state in _STOPPED:
            raise self._refusal(STOPPED)

    def _refusal(self, reason: str, why: str = "") -> NotReady:
        self.refused[reason] += 1
        return not_ready(self._lifecycle, why)


def not_ready(lifecycle: Lifecycle, why: str = "") -> NotReady:
    """What a client is told whom the server cannot serve now, and when to come back."""
    return NotReady(
        f"the model is not ready{why}: {lifecycle.state.value}: {lifecycle.detail}",
        retry_after_s=lifecycle.retry_after_s(),
    )
