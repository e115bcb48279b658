"""When each shard's bytes were fetched, waited for a writer, and were put at their addresses.

Takes marks of chunks from lanes and writers (seconds of CLOCK_BOOTTIME), gives one interval per shard and stage, and one
per stage: from its first chunk's beginning to its last chunk's end; and of each shard's reads a summary, whose size
does not grow with their number. Knows neither sources nor arenas.
"""

from __future__ import annotations

import bisect
import heapq
import threading
from collections.abc import Iterable

from streaming.messages import RANGE_BUCKETS_S, Chunk, RangeSummary, RangeTime, ShardTimes

Interval = tuple[float, float]
STAGES = ("fetch", "stage", "copy")
SLOWEST_RANGES = 16


class Timings:
    """The marks of one load."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._intervals: dict[tuple[str, str], Interval] = {}
        self._ranges: dict[str, _Ranges] = {}

    def fetched(self, chunk: Chunk, start_s: float, end_s: float) -> None:
        """A chunk was asked for and has come; for one thread."""
        self._ranges.setdefault(chunk.shard, _Ranges()).add(chunk, start_s, end_s)
        self._extend(chunk.shard, "fetch", start_s, end_s)

    def taken(self, shard: str, fetched_s: float, taken_s: float) -> None:
        """A writer has taken a chunk; until it has landed, it is copied."""
        self._extend(shard, "stage", fetched_s, taken_s)
        self._extend(shard, "copy", taken_s, taken_s)

    def landed(self, shard: str, landed_s: float) -> None:
        """A chunk is at its address."""
        self._extend(shard, "copy", landed_s, landed_s)

    def shards(self) -> tuple[ShardTimes, ...]:
        """Every shard, in the order in which they were begun."""
        return tuple(
            ShardTimes(
                shard=shard,
                nbytes=ranges.nbytes,
                ranges=ranges.summary(),
                **{stage: self._intervals[shard, stage] for stage in STAGES},
            )
            for shard, ranges in self._ranges.items()
        )

    def _extend(self, shard: str, stage: str, start_s: float, end_s: float) -> None:
        with self._lock:
            first_s, last_s = self._intervals.get((shard, stage), (start_s, end_s))
            self._intervals[shard, stage] = min(first_s, start_s), max(last_s, end_s)


class _Ranges:
    """The reads of one shard."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._counts = [0] * (len(RANGE_BUCKETS_S) + 1)
        self._sum_s = 0.0
        self._slowest: list[tuple[float, int, RangeTime]] = []  # a heap; two reads never begin at the same byte

    def add(self, chunk: Chunk, start_s: float, end_s: float) -> None:
        seconds = end_s - start_s
        self.nbytes += chunk.nbytes
        self._counts[bisect.bisect_left(RANGE_BUCKETS_S, seconds)] += 1
        self._sum_s += seconds
        entry = (seconds, chunk.start, RangeTime(chunk.start, chunk.end, start_s, end_s))
        if len(self._slowest) < SLOWEST_RANGES:
            heapq.heappush(self._slowest, entry)
        else:
            heapq.heappushpop(self._slowest, entry)

    def summary(self) -> RangeSummary:
        slowest = tuple(found for *_, found in sorted(self._slowest, reverse=True))
        return RangeSummary(counts=tuple(self._counts), sum_s=self._sum_s, slowest=slowest)


def whole(shards: Iterable[ShardTimes], stage: str) -> Interval:
    """From the first shard's beginning of a stage to the last one's end."""
    starts, ends = zip(*(getattr(shard, stage) for shard in shards), strict=True)
    return min(starts), max(ends)
