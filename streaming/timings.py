"""When each shard's bytes were fetched, waited for a writer, and were put at their addresses.

Takes marks of chunks from lanes and writers (seconds of CLOCK_BOOTTIME), gives one interval per shard and stage, and one
per stage: from its first chunk's beginning to its last chunk's end. Knows neither sources nor arenas.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable

from streaming.messages import ShardTimes

Interval = tuple[float, float]
STAGES = ("fetch", "stage", "copy")


class Timings:
    """The marks of one load."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._intervals: dict[tuple[str, str], Interval] = {}
        self._fetched: Counter[str] = Counter()

    def fetched(self, shard: str, nbytes: int, start_s: float, end_s: float) -> None:
        """A chunk was asked for and has come."""
        self._fetched[shard] += nbytes
        self._extend(shard, "fetch", start_s, end_s)

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
            ShardTimes(shard=shard, nbytes=nbytes, **{stage: self._intervals[shard, stage] for stage in STAGES})
            for shard, nbytes in self._fetched.items()
        )

    def _extend(self, shard: str, stage: str, start_s: float, end_s: float) -> None:
        with self._lock:
            first_s, last_s = self._intervals.get((shard, stage), (start_s, end_s))
            self._intervals[shard, stage] = min(first_s, start_s), max(last_s, end_s)


def whole(shards: Iterable[ShardTimes], stage: str) -> Interval:
    """From the first shard's beginning of a stage to the last one's end."""
    starts, ends = zip(*(getattr(shard, stage) for shard in shards), strict=True)
    return min(starts), max(ends)
