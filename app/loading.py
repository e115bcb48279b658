"""The loader process seen from the server: its plan, its arena, what has landed, and its restarts.

Takes messages, gives events. Holds the arena's descriptor, so that a loader that dies is followed by one
that fetches only the rest. Knows no engine, no HTTP and no state of the server.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import msgspec

from app.channel import Channel
from app.child import Child
from streaming.errors import ErrorReport
from streaming.messages import (
    Described,
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

_MAX_RESTARTS = 3


class LoadEvents(Protocol):
    """Who wants to know how the load goes."""

    def phase(self, phase: PhaseTimed) -> None:
        """A phase of the startup has ended."""

    def described(self, described: Described) -> None:
        """The headers are known; `Loading.lay_out` is waited for."""

    def planned(self, plan: Plan, arena_fd: int) -> None:
        """Addresses exist; their bytes do not."""

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
        self._respawn = respawn
        self._events = events
        self._restarts = 0
        self._plan: Plan | None = None
        self._arena_fd: int | None = None
        self._left: dict[int, int] = {}
        self._done = False
        self._watch(child)

    def lay_out(self, layout: Layout) -> None:
        """Answer `described`."""
        self._channel.send(layout)

    def close(self) -> None:
        """End the loader, if it still runs."""
        self._done = True
        self._channel.close()
        self._child.kill()

    def _watch(self, child: Child) -> None:
        self._child = child
        self._channel = Channel(
            child,
            FromLoader,
            on_message=self._receive,
            on_closed=self._closed,
            on_error=self._events.broken,
        )

    def _receive(self, message: FromLoader, fds: list[int]) -> None:
        match message:
            case PhaseTimed():
                self._events.phase(message)
            case Described():
                self._events.described(message)
            case Planned(plan=plan):
                self._plan, self._arena_fd = plan, fds[0]
                self._left = {chunk.chunk_id: chunk.end - chunk.start for chunk in plan.chunks}
                self._events.planned(plan, fds[0])
            case LandedChunks(chunk_ids=chunk_ids):
                self._events.progressed(sum(self._left.pop(chunk_id) for chunk_id in chunk_ids))
            case Landed(report=report):
                assert self._plan is not None  # it was planned before it landed
                self._done = True
                self._events.landed(self._plan, report)
            case LoadFailed(error=error):
                self._done = True
                self._events.failed(error)

    def _closed(self) -> None:
        self._child.kill()
        if self._done:
            return
        if self._restarts == _MAX_RESTARTS:
            self._done = True
            message = f"the loader died {_MAX_RESTARTS + 1} times: see its messages above"
            self._events.failed(ErrorReport("LoaderLost", message, 6))
            return
        self._restarts += 1
        self._resume()

    def _resume(self) -> None:
        """Start another loader on the same arena, for what has not landed."""
        logger.warning(
            "the loader died (exit %s): restarting it for the %d chunks that have not landed",
            self._child.process.returncode,
            len(self._left),
        )
        request, fds = self._request, []
        if self._plan is not None and self._arena_fd is not None:
            landed = tuple(chunk.chunk_id for chunk in self._plan.chunks if chunk.chunk_id not in self._left)
            origin = msgspec.structs.replace(request.origin, generation=self._restarts)
            request = msgspec.structs.replace(request, origin=origin, resume=Resume(self._plan, landed))
            fds = [self._arena_fd]
        self._watch(self._respawn())
        self._channel.send(request, fds)
