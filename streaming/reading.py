"""The readers between a source and the lanes, from the inside out: so many at once, twice, again, from disk, and right.

Takes a source and what the loader was asked for, gives readers that share one load's budget and counters. The only place that
knows their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from streaming.blocks import BlockDigests
from streaming.cached import Cached
from streaming.counters import FetchCounters
from streaming.hedging import HedgingReader
from streaming.manifest import OnFlaw
from streaming.messages import BlobVersion, FellBack, LoadRequest
from streaming.options import HOST_STAGING
from streaming.retrying import Retries, RetryingRanges, RetryingSource
from streaming.source import Source
from streaming.throttling import ThrottledReader
from streaming.uri import Location
from streaming.verified import Verification

if TYPE_CHECKING:
    from streaming.pipeline import Bytes, Check, RangeReader


class Reading:
    """One load's.

    Args:
        source: Where the bytes are.
        request: How often and how long one read is tried, how many there are at once, and where they are kept.
        counters: Of everything that is met on the way.
        tell: Tells the server of what was not to be had. From any thread.
    """

    def __init__(self, source: Source, request: LoadRequest, counters: FetchCounters, tell: Callable[[FellBack], None]):
        self.counters = counters
        self._source = source
        self._pipeline = request.pipeline
        self._retries = Retries(request.source, counters)
        throttled = ThrottledReader(source, self._pipeline.throttling, self._pipeline.lanes, counters)
        hedged = HedgingReader(
            throttled,
            self._pipeline.hedging,
            self._pipeline.second_reads,
            counters,
            read_again=throttled.read_again,
            is_held_back=throttled.is_held_back,
        )
        self._tried = RetryingRanges(hedged, self._retries)
        self._cached: Cached | None = None
        if request.cache is not None and request.strategy != HOST_STAGING:
            self._cached = Cached(
                self._tried,
                source.location,
                request.cache,
                counters,
                lambda what, reason: tell(FellBack(what=what, reason=reason)),
            )

    @property
    def location(self) -> Location:
        """Where the source is."""
        return self._source.location

    def metadata(self) -> RetryingSource:
        """For describing the checkpoint."""
        return RetryingSource(self._source, self._retries)

    def expect(self, versions: Iterable[BlobVersion]) -> None:
        """Say what will be read, before the first range is."""
        if self._cached is not None:
            self._cached.expect(versions)

    def ranges(self) -> RangeReader:
        """For the lanes."""
        return self._cached or self._tried

    def check(self, digests: Mapping[str, BlockDigests], on_flaw: OnFlaw) -> Check:
        """For what they have read; of shards in `digests` that is whole blocks."""
        again = _PastTheCache(self._cached) if self._cached else self._tried
        return Verification(digests, self.counters, again=again, place=self.location, on_flaw=on_flaw).check

    def finish(self) -> None:
        """Let what waits for the disk be written, for a while; no read may follow."""
        if self._cached is not None:
            self._cached.finish()


class _PastTheCache:
    """Reads of what the cache may hold damaged: from the source, and kept anew."""

    def __init__(self, cached: Cached):
        self._cached = cached

    async def read_range(self, version: BlobVersion, start: int, end: int) -> Bytes:
        """As `Cached.read_range`, but never from disk."""
        self._cached.refuse(version, start, end)
        return await self._cached.read_range(version, start, end)
