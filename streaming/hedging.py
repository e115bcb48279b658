"""A range that is slower than its peers is read a second time; whichever read ends first wins.

Takes a reader, gives one. A stalled connection then costs a few ordinary reads' time instead of a timeout, which matters most
when the last lanes are waited for. Extra bytes are bounded by a share of what was asked for, so that a source that is slow
as a whole is not asked for more. Knows neither sources nor why a read is slow; its clock is the event loop's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

from streaming.counters import FetchCounters
from streaming.messages import BlobVersion
from streaming.options import HedgingOptions

if TYPE_CHECKING:
    from streaming.pipeline import Bytes, RangeReader

    ReadRange = Callable[[BlobVersion, int, int], Awaitable[Bytes]]

# Of a median of fewer nothing follows; more than the last few rows of the lanes tell of a source that was.
_LEAST_PEERS = 3
_MOST_PEERS = 64
# How often a range that has not come is looked at: others that end meanwhile change what is slow.
_TICK_S = 0.05


class HedgePolicy:
    """Which range is slow, and whether another read of it can be afforded. Pure."""

    def __init__(self, options: HedgingOptions):
        self._options = options
        self._peers: deque[tuple[int, float]] = deque(maxlen=_MOST_PEERS)
        self._asked_bytes = 0
        self._largest_bytes = 0
        self._extra_bytes = 0

    def asked(self, nbytes: int) -> None:
        """A range of the load is asked for."""
        self._asked_bytes += nbytes
        self._largest_bytes = max(self._largest_bytes, nbytes)

    def ended(self, nbytes: int, seconds: float) -> None:
        """A read of so many bytes took so long."""
        self._peers.append((nbytes, seconds))

    def is_slow(self, nbytes: int, seconds: float) -> bool:
        """Whether a read of so many bytes should have ended by now, by what others took."""
        if seconds <= self._options.floor_s or len(self._peers) < _LEAST_PEERS:
            return False
        return seconds > self._options.factor * self._typical_s(nbytes)

    def spend(self, nbytes: int) -> bool:
        """Whether so many bytes more may be asked for; if so, they are spent.

        One range beyond the share is free, or a small load could never be helped.
        """
        allowed = self._options.budget_ratio * self._asked_bytes + self._largest_bytes
        if self._options.budget_ratio == 0 or self._extra_bytes + nbytes > allowed:
            return False
        self._extra_bytes += nbytes
        return True

    def _typical_s(self, nbytes: int) -> float:
        """The median; a smaller peer's time is scaled up, a larger one's not down: a part of it was no transfer."""
        scaled = sorted(seconds * max(1.0, nbytes / peer_bytes) for peer_bytes, seconds in self._peers)
        return scaled[len(scaled) // 2]


class HedgingReader:
    """Reads through `reader`, and a slow range once more.

    Args:
        reader: What ranges are asked of.
        options: What is slow, and how many bytes may be read twice.
        at_once: How many ranges are read a second time at once (`PipelineOptions.second_reads`).
        counters: `hedges`, `hedges_won` and `wasted_bytes` are counted here.
        read_again: What is asked for a range once more.
        is_held_back: Whether reads wait before they reach the source: then another one would only wait, too.
    """

    def __init__(
        self,
        reader: RangeReader,
        options: HedgingOptions,
        at_once: int,
        counters: FetchCounters,
        *,
        read_again: ReadRange | None = None,
        is_held_back: Callable[[], bool] = lambda: False,
    ):
        self._first = reader.read_range
        self._again = read_again or reader.read_range
        self._policy = HedgePolicy(options)
        self._at_once = at_once
        self._second_reads = 0
        self._counters = counters
        self._is_held_back = is_held_back

    async def read_range(self, version: BlobVersion, start: int, end: int) -> Bytes:
        """Bytes `[start, end)` of this version, of the read that had them first; no read is left behind.

        Raises:
            SourceError: The read failed, and where there were two, both did: the first one's error.
        """
        self._policy.asked(end - start)
        reads = [asyncio.create_task(self._timed(self._first, version, start, end))]
        try:
            if await self._is_overtaken(reads[0], end - start):
                reads.append(asyncio.create_task(self._timed(self._again, version, start, end)))
                self._second_reads += 1
                self._counters.hedges += 1
                self._counters.wasted_bytes += end - start  # one of the two is, whichever it will be
            winner = await _first_good(reads)
            self._counters.hedges_won += winner is not reads[0]
            return winner.result()
        finally:
            await _cancel(reads)
            self._second_reads -= len(reads) - 1

    async def _timed(self, read: ReadRange, version: BlobVersion, start: int, end: int) -> Bytes:
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        data = await read(version, start, end)
        self._policy.ended(end - start, loop.time() - start_s)
        return data

    async def _is_overtaken(self, read: asyncio.Task[Bytes], nbytes: int) -> bool:
        """Wait until it has ended (False), or is slow and a second read can be had (True)."""
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        while not (await asyncio.wait({read}, timeout=_TICK_S))[0]:
            if (
                self._policy.is_slow(nbytes, loop.time() - start_s)
                and self._second_reads < self._at_once
                and not self._is_held_back()
                and self._policy.spend(nbytes)
            ):
                return True
        return False


async def _first_good(reads: list[asyncio.Task[Bytes]]) -> asyncio.Task[Bytes]:
    """The first read that ends well, or the first of all if none does."""
    pending = set(reads)
    while pending:
        _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for read in reads:
            if read.done() and read.exception() is None:
                return read
    return reads[0]


async def _cancel(reads: Iterable[asyncio.Task[Bytes]]) -> None:
    """Return when none runs any more; dropping obstore's future closes its connection."""
    for read in reads:
        read.cancel()
    await asyncio.gather(*reads, return_exceptions=True)
