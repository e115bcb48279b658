"""The loader process seen from the server: its plan, its arena, what has landed, and its restarts.

Takes messages, gives events. Holds the arena's descriptor, so that a loader that dies is followed by one
that fetches only the rest. Knows no engine, no HTTP and no state of the server.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import msgspec

from app.child import Child
from app.kept_child import KeptChild
from streaming.errors import ErrorReport
from streaming.messages import (
    ArenaMemory,
    Described,
    FellBack,
    FromLoader,
    Landed,
    LandedChunks,
    Layout,
    LoadFailed,
    LoadReport,
    LoadRequest,
    PhaseTimed,
    Plan,
    Planned,
    Resume,
)

logger = logging.getLogger(__name__)


class LoadEvents(Protocol):
    """Who wants to know how the load goes."""

    def phase(self, phase: PhaseTimed) -> None:
        """A phase of the startup has ended."""

    def described(self, described: Described) -> None:
        """The headers are known; `Loading.lay_out` is waited for."""

    def planned(self, planned: Planned, arena_fd: int) -> None:
        """Addresses exist; their bytes do not."""

    def fell_back(self, fallback: FellBack) -> None:
        """Something was not to be had, and replaced."""

    def progressed(self, nbytes: int) -> None:
        """So many more bytes are at their addresses."""

    def landed(self, plan: Plan, report: LoadReport) -> None:
        """All of them are."""

    def failed(self, error: ErrorReport) -> None:
        """The load cannot be completed."""

    def broken(self, error: Exception) -> None:
        """Something was raised that nobody expects."""


class Loading:
    """One load, over as many loader processes as it takes.

    Args:
        child: The loader, which has been sent `request` already.
        request: What it was asked for.
        respawn: Starts another loader.
        events: Told of everything that follows.
    """

    def __init__(self, child: Child, request: LoadRequest, respawn: Callable[[], Child], events: LoadEvents):
        self._request = request
        self._events = events
        self._plan: Plan | None = None
        self._arena: tuple[int, ArenaMemory] | None = None
        self._left: dict[int, int] = {}
        self._loader = KeptChild(
            child,
            FromLoader,
            respawn=respawn,
            on_message=self._receive,
            on_replaced=self._resume,
            on_lost=events.failed,
            on_error=events.broken,
        )

    def lay_out(self, layout: Layout) -> None:
        """Answer `described`."""
        self._loader.send(layout)

    def close(self) -> None:
        """End the loader, if it still runs."""
        self._loader.close()

    def _receive(self, message: FromLoader, fds: list[int]) -> None:
        match message:
            case PhaseTimed():
                self._events.phase(message)
            case Described():
                self._events.described(message)
            case Planned(plan=plan, memory=memory):
                self._plan, self._arena = plan, (fds[0], memory)
                self._left = {chunk.chunk_id: chunk.nbytes for chunk in plan.chunks}
                self._events.planned(message, fds[0])
            case FellBack():
                self._events.fell_back(message)
            case LandedChunks(chunk_ids=chunk_ids):
                self._events.progressed(sum(self._left.pop(chunk_id) for chunk_id in chunk_ids))
            case Landed(report=report):
                assert self._plan is not None  # it was planned before it landed
                self._loader.retire()
                self._events.landed(self._plan, report)
            case LoadFailed(error=error):
                self._loader.retire()
                self._events.failed(error)

    def _resume(self) -> None:
        """Have a new loader fetch what the dead one had not landed, into the same arena."""
        logger.warning("restarting the load for the %d chunks that have not landed", len(self._left))
        request, fds = self._request, []
        if self._plan is not None and self._arena is not None:
            fd, memory = self._arena
            landed = tuple(chunk.chunk_id for chunk in self._plan.chunks if chunk.chunk_id not in self._left)
            origin = msgspec.structs.replace(request.origin, generation=self._loader.restarts)
            request = msgspec.structs.replace(request, origin=origin, resume=Resume(self._plan, memory, landed))
            fds = [fd]
        self._loader.send(request, fds)
