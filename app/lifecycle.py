"""The server's one state machine, which probes, API and logs all read.

    STARTING -> LOADING -> WARMING -> READY -> DRAINING        any of them -> FAILED

Takes events from the supervisor; knows no HTTP, no process and no signal.
"""

from __future__ import annotations

import asyncio
import enum
import math

import msgspec

from app.eta import Eta
from streaming.clock import boottime_s
from streaming.progress import Progress

# The official openai client gives up on a Retry-After above this.
_MAX_RETRY_AFTER_S = 120.0
# What a client is told to wait while no rate is known yet.
_UNKNOWN_RETRY_AFTER_S = 2.0


class State(enum.StrEnum):
    """Where the server is between exec and exit."""

    STARTING = "starting"
    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


_NEXT = {
    State.STARTING: {State.LOADING, State.DRAINING, State.FAILED},
    State.LOADING: {State.WARMING, State.DRAINING, State.FAILED},
    State.WARMING: {State.READY, State.DRAINING, State.FAILED},
    # A lost engine takes the server back to WARMING on the same arena.
    State.READY: {State.WARMING, State.DRAINING, State.FAILED},
    State.DRAINING: {State.FAILED},
    State.FAILED: set[State](),
}


class Health(msgspec.Struct, frozen=True):
    """What `/health` shows; `eta_s` is seconds until READY, None where nobody knows or it is not on its way."""

    state: State
    bytes_landed: int
    bytes_total: int
    throughput_bytes_per_s: float
    eta_s: float | None
    detail: str


class Lifecycle:
    """The current state, why it is so, and how far the load has come."""

    def __init__(self) -> None:
        self.eta = Eta(boottime_s())
        self.state = State.STARTING
        self.detail = "waiting for the checkpoint's headers"
        self.progress: Progress | None = None
        self._changed = asyncio.Event()

    def advance(self, state: State, detail: str) -> bool:
        """Move to `state` if the machine allows it from here; returns whether it did.

        Events race (an engine may die while the server drains), so a step that is no longer possible
        is refused rather than an error.
        """
        if state is not self.state and state not in _NEXT[self.state]:
            return False
        self.state = state
        self.detail = detail
        self._changed.set()
        self._changed = asyncio.Event()
        return True

    async def changed(self) -> None:
        """Return at the next call of `advance`."""
        await self._changed.wait()

    def health(self) -> Health:
        """A consistent picture of this moment."""
        now_s = boottime_s()
        progress = self.progress
        return Health(
            state=self.state,
            bytes_landed=progress.landed_bytes if progress else 0,
            bytes_total=progress.total_bytes if progress else 0,
            throughput_bytes_per_s=round(progress.throughput_bytes_per_s(now_s))
            if progress and self.state is State.LOADING
            else 0,
            eta_s=self._eta_s(now_s),
            detail=self.detail,
        )

    def _eta_s(self, now_s: float) -> float | None:
        if self.progress is None or self.state not in (State.LOADING, State.WARMING):
            return None
        eta_s = self.eta.until_ready_s(self.progress, now_s)
        return None if eta_s is None else round(eta_s, 3)

    def retry_after_s(self) -> int:
        """Whole seconds after which a client should ask again; 1 to 120."""
        eta_s = self.health().eta_s
        wait_s = _UNKNOWN_RETRY_AFTER_S if eta_s is None else eta_s
        return max(1, math.ceil(min(wait_s, _MAX_RETRY_AFTER_S)))
