"""The loader process seen from the server: its plan, its arena, what has landed, and its restarts.

Takes messages, gives events. Holds the descriptors of the arena and of staged shards, so that a loader that dies
is followed by one that fetches only the rest. Knows no engine, no HTTP and no state of the server.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from app.child import Child
from app.kept_child import KeptChild
from app.messages import StagedShard
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
    Staged,
)

logger = logging.getLogger(__name__)


class LoadEvents(Protocol):
    """Who wants to know how the load goes."""

    def phase(self, phase: PhaseTimed) -> None:
        """A phase of the startup has ended."""

    def described(self, described: Described) -> None:
        """The headers are known; `Loading.lay_out` is waited for."""

    def planned(self, planned: Planned, fds: list[int]) -> None:
        """Addresses exist, in the arena that `fds` holds, if there is one yet; their bytes do not."""

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
        self._arena: tuple[list[int], ArenaMemory] | None = None
        self._left: dict[int, int] = {}
        self._shard_of: dict[str, str] = {}
        self._tensors: dict[str, dict[str, str]] = {}  # of each shard: names in it by stored names
        self._staged: dict[str, int] = {}
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
        for tensor in layout.tensors:
            self._tensors.setdefault(self._shard_of[tensor.source_name], {})[tensor.stored_name] = tensor.source_name
        self._loader.send(layout)

    def staged(self) -> tuple[tuple[StagedShard, ...], tuple[int, ...]]:
        """The shards on disk and their descriptors; none where weights go straight to the arena."""
        shards = tuple(StagedShard(name, self._tensors[name]) for name in self._staged)
        return shards, tuple(self._staged.values())

    def close(self) -> None:
        """End the loader, if it still runs."""
        self._loader.close()

    def _receive(self, message: FromLoader, fds: list[int]) -> None:
        match message:
            case PhaseTimed():
                self._events.phase(message)
            case Described(entries=entries):
                self._shard_of = {entry.name: entry.shard for entry in entries}
                self._tensors = {}
                self._events.described(message)
            case Planned(plan=plan, memory=memory):
                self._plan, self._arena = plan, (fds, memory)
                self._left = {chunk.chunk_id: chunk.nbytes for chunk in plan.chunks}
                self._events.planned(message, fds)
            case FellBack():
                self._events.fell_back(message)
            case LandedChunks(chunk_ids=chunk_ids):
                self._advance(chunk_ids)
            case Staged(shard=shard):
                assert self._plan is not None  # it was planned before it was staged
                self._staged[shard] = fds[0]
                self._advance(chunk.chunk_id for chunk in self._plan.chunks if chunk.shard == shard)
            case Landed(report=report):
                assert self._plan is not None  # it was planned before it landed
                self._loader.retire()
                self._events.landed(self._plan, report)
            case LoadFailed(error=error):
                self._loader.retire()
                self._events.failed(error)

    def _advance(self, chunk_ids: Iterable[int]) -> None:
        self._events.progressed(sum(self._left.pop(chunk_id) for chunk_id in chunk_ids))

    def _resume(self) -> None:
        """Have a new loader fetch what the dead one had not landed, to the same place."""
        logger.warning("restarting the load for the %d chunks that have not landed", len(self._left))
        request, fds = self._request, list[int]()
        if self._plan is not None and self._arena is not None:
            fds, memory = self._arena
            landed = tuple(chunk.chunk_id for chunk in self._plan.chunks if chunk.chunk_id not in self._left)
            origin = msgspec.structs.replace(request.origin, generation=self._loader.restarts)
            request = msgspec.structs.replace(request, origin=origin, resume=Resume(self._plan, memory, landed))
        self._loader.send(request, fds)
