"""No more reads at once and per second than the source bears, no more bytes per second than the node may take.

Takes a reader, gives one whose reads wait their turn. Knows neither sources nor lanes.

Nothing paces the requests to a single blob beforehand. Azure's target is 500 per second and blob; with reads of 16 MiB one
node meets it at 8 GB/s from one shard, and reads alternate between shards. What many nodes ask for together no node can
know: the service says so (503); the limit follows at once, and the pace as soon as it is known what was answered.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from typing import TYPE_CHECKING

from streaming.adaptive_limit import AdaptiveLimit
from streaming.adaptive_pace import AdaptivePace
from streaming.causes import Cause
from streaming.counters import FetchCounters
from streaming.errors import SourceError
from streaming.messages import BlobVersion
from streaming.options import ThrottlingOptions

if TYPE_CHECKING:
    from streaming.pipeline import Bytes, RangeReader


def asks_for_less(error: SourceError) -> bool:
    """Whether the source answered that it is asked for too much (503 or 429)."""
    return error.cause in (Cause.UNAVAILABLE, Cause.TOO_MANY)


def start_wait_s(start_jitter_s: float) -> float:
    """How long this node waits before its first read of weights: uniform, so that a fleet does not start as one."""
    return random.uniform(0, start_jitter_s)  # noqa: S311 - nobody gains by guessing it


class ThrottledReader:
    """Reads through `reader`, when it is a read's turn.

    Args:
        reader: What is throttled.
        options: The bounds.
        lanes: The most reads at once.
        counters: `throttles` is counted here.
    """

    def __init__(self, reader: RangeReader, options: ThrottlingOptions, lanes: int, counters: FetchCounters):
        self._reader = reader
        self._limit = AdaptiveLimit(lanes, least=options.min_lanes)
        self._gate = _Gate(self._limit)
        self._pace = AdaptivePace()
        self._bandwidth = Bandwidth(options.max_bandwidth_bytes_per_s or math.inf)
        self._pacing = 0
        self._counters = counters

    def is_held_back(self) -> bool:
        """Whether reads wait because of a lowered limit, the pace or the bandwidth."""
        return self._pacing > 0 or (self._gate.waiting > 0 and self._limit.is_reduced)

    async def read_range(self, version: BlobVersion, start: int, end: int) -> Bytes:
        """Bytes `[start, end)` of this version.

        Raises:
            SourceError: They could not be read; if the source asked for less, the limit is lower from now on.
        """
        await self._gate.enter()
        try:
            return await self._paced(version, start, end)
        finally:
            self._gate.leave()

    async def read_again(self, version: BlobVersion, start: int, end: int) -> Bytes:
        """As `read_range`, beside a read of the same bytes that hardly gets any: where no limit is lowered, it needs no turn."""
        read = self.read_range if self._limit.is_reduced else self._paced
        return await read(version, start, end)

    async def _paced(self, version: BlobVersion, start: int, end: int) -> Bytes:
        now_s = asyncio.get_running_loop().time()
        self._pacing += 1
        try:
            await asyncio.sleep(max(self._pace.wait_s(now_s), self._bandwidth.wait_s(end - start, now_s)))
        finally:
            self._pacing -= 1
        return await self._observed(version, start, end)

    async def _observed(self, version: BlobVersion, start: int, end: int) -> Bytes:
        loop = asyncio.get_running_loop()
        began_in, start_s = self._limit.round, loop.time()
        try:
            data = await self._reader.read_range(version, start, end)
        except SourceError as error:
            if asks_for_less(error):
                self._counters.throttles += 1
                self._limit.refused(began_in)
                self._pace.refused(start_s, loop.time())
            raise
        self._limit.answered(began_in, end - start, loop.time() - start_s)
        self._pace.answered(loop.time())
        return data


class Bandwidth:
    """A token bucket as deep as one read: each waits until those before it are paid for. Pure."""

    def __init__(self, bytes_per_s: float):
        self._bytes_per_s = bytes_per_s
        self._paid_at_s = -math.inf

    def wait_s(self, nbytes: int, now_s: float) -> float:
        """How long to wait before reading so many bytes; they are taken from the bucket."""
        start_s = max(now_s, self._paid_at_s)
        self._paid_at_s = start_s + nbytes / self._bytes_per_s
        return start_s - now_s


class _Gate:
    """Admits as many as the limit says, first come, first served."""

    def __init__(self, limit: AdaptiveLimit):
        self._limit = limit
        self._inside = 0
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    async def enter(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.leave()  # it was admitted in the same moment
            elif turn in self._queue:
                self._queue.remove(turn)
            raise

    def leave(self) -> None:
        self._inside -= 1
        self._admit()

    def _admit(self) -> None:
        while self._queue and self._inside < self._limit.current:
            turn = self._queue.popleft()
            if not turn.cancelled():
                self._inside += 1
                turn.set_result(None)
