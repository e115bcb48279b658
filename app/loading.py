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
from app.watchdog import Watchdog
from streaming.counters import FetchCounters
from streaming.errors import ErrorReport
from streaming.messages import (
    ArenaMemory,
    Counted,
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

    def counted(self, counters: FetchCounters) -> None:
        """This is what the load has met until now, whichever loader did."""

    def progressed(self, nbytes: int) -> None:
        """So many more bytes are at their addresses."""

    def landed(self, plan: Plan, report: LoadReport) -> None:
        """All of them are."""

    def loader_lost(self, what: str) -> None:
        """The loader died, or was ended because it hung, as `what` says; another is starting."""

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
        stall_timeout_s: After so many seconds without progress another loader goes on, with new connections; if that
            one stalls, too, the load has failed.
    """

    def __init__(
        self,
        child: Child,
        request: LoadRequest,
        respawn: Callable[[], Child],
        events: LoadEvents,
        *,
        stall_timeout_s: float,
    ):
        self._request = request
        self._events = events
        self._awaits_layout = False
        self._is_over = False
        self._stalls = 0
        self._plan: Plan | None = None
        self._arena: tuple[list[int], ArenaMemory] | None = None
        self._left: dict[int, int] = {}
        self._shard_of: dict[str, str] = {}
        self._tensors: dict[str, dict[str, str]] = {}  # of each shard: names in it by stored names
        self._staged: dict[str, int] = {}
        self._counters = FetchCounters()
        self._lost_counters = FetchCounters()  # of the loaders before this one
        self._loader = KeptChild(
            child,
            FromLoader,
            respawn=respawn,
            on_message=self._hear,
            on_died=events.loader_lost,
            on_replaced=self._resume,
            on_lost=events.failed,
            on_error=events.broken,
        )
        self._watchdog = Watchdog(
            lambda: None if self._awaits_layout or self._is_over else stall_timeout_s, self._stalled
        )

    def lay_out(self, layout: Layout) -> None:
        """Answer `described`."""
        self._awaits_layout = False
        for tensor in layout.tensors:
            self._tensors.setdefault(self._shard_of[tensor.source_name], {})[tensor.stored_name] = tensor.source_name
        self._loader.send(layout)

    def staged(self) -> tuple[tuple[StagedShard, ...], tuple[int, ...]]:
        """The shards on disk and their descriptors; none where weights go straight to the arena."""
        shards = tuple(StagedShard(name, self._tensors[name]) for name in self._staged)
        return shards, tuple(self._staged.values())

    def end(self) -> None:
        """End the loader, if it still runs; it may still be going when this returns."""
        self._watchdog.close()
        self._loader.end()

    def close(self) -> None:
        """End it, and wait until it is gone."""
        self.end()
        self._loader.close()

    def _hear(self, message: FromLoader, fds: list[int]) -> None:
        if not isinstance(message, Counted):  # to try in vain is to be silent
            self._watchdog.heard()
        self._receive(message, fds)

    def _receive(self, message: FromLoader, fds: list[int]) -> None:
        match message:
            case PhaseTimed():
                self._events.phase(message)
            case Described(entries=entries):
                self._shard_of = {entry.name: entry.shard for entry in entries}
                self._tensors = {}
                self._awaits_layout = True
                self._events.described(message)
            case Planned(plan=plan, memory=memory):
                self._plan, self._arena = plan, (fds, memory)
                self._left = {chunk.chunk_id: chunk.nbytes for chunk in plan.chunks}
                self._events.planned(message, fds)
            case FellBack():
                self._events.fell_back(message)
            case Counted(counters=counters):
                self._count(counters)
            case LandedChunks(chunk_ids=chunk_ids):
                self._advance(chunk_ids)
            case Staged(shard=shard):
                assert self._plan is not None  # it was planned before it was staged
                self._staged[shard] = fds[0]
                self._advance(chunk.chunk_id for chunk in self._plan.chunks if chunk.shard == shard)
            case Landed(report=report):
                assert self._plan is not None  # it was planned before it landed
                self._retire()
                self._count(report.counters)
                self._events.landed(self._plan, report)
            case LoadFailed(error=error):
                self._retire()
                self._events.failed(error)

    def _count(self, counters: FetchCounters) -> None:
        self._counters = self._lost_counters.plus(counters)
        self._events.counted(self._counters)

    def _retire(self) -> None:
        self._is_over = True
        self._loader.retire()

    def _stalled(self, silence_s: float) -> None:
        """A connection may be dead without a word: the rest is fetched over new ones, once."""
        self._stalls += 1
        if self._stalls == 1:
            self._loader.kill(f"stalled: nothing landed for {silence_s:g} s")
            return
        self._retire()
        self._events.failed(self._stall(silence_s))

    def _stall(self, silence_s: float) -> ErrorReport:
        """Whose fault it is that two loaders in a row were silent."""
        if self._plan is None and self._shard_of:
            why = "the driver may be stuck, or --stall-timeout too low for its start"
            return ErrorReport("DeviceError", f"no memory for the weights was made in {silence_s:g} s, twice: {why}", 5)
        left = f"{sum(self._left.values())} bytes are left" if self._plan else "not even the headers were read"
        return ErrorReport(
            "SourceStalled",
            f"{self._request.uri.partition('?')[0]}: nothing landed for {silence_s:g} s, also over new connections; "
            f"{left}: check the network, or raise --stall-timeout",
            3,
        )

    def _advance(self, chunk_ids: Iterable[int]) -> None:
        self._stalls = 0
        self._events.progressed(sum(self._left.pop(chunk_id) for chunk_id in chunk_ids))

    def _resume(self) -> None:
        """Have a new loader fetch what the dead one had not landed, to the same place."""
        logger.warning("restarting the load for the %d chunks that have not landed", len(self._left))
        self._awaits_layout = False
        self._lost_counters = self._counters
        request, fds = self._request, list[int]()
        if self._plan is not None and self._arena is not None:
            fds, memory = self._arena
            landed = tuple(chunk.chunk_id for chunk in self._plan.chunks if chunk.chunk_id not in self._left)
            origin = msgspec.structs.replace(request.origin, generation=self._loader.restarts)
            request = msgspec.structs.replace(request, origin=origin, resume=Resume(self._plan, memory, landed))
        self._loader.send(request, fds)
