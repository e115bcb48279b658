"""The readers between a source and the lanes, from the inside out: how many at once, twice, again, and whether they are right.

Takes a source and options, gives readers that share one load's budget and counters. The only place that knows their order.
"""

from __future__ import annotations

from collections.abc import Mapping

from streaming.counters import FetchCounters
from streaming.hedging import HedgingReader
from streaming.manifest import OnFlaw
from streaming.messages import BlockDigests
from streaming.options import PipelineOptions, SourceOptions
from streaming.pipeline import RangeReader
from streaming.retrying import Retries, RetryingRanges, RetryingSource
from streaming.source import Source
from streaming.throttling import ThrottledReader
from streaming.uri import Location
from streaming.verified import Verified


class Reading:
    """One load's.

    Args:
        source: Where the bytes are.
        options: How often and how long one read is tried.
        pipeline: How many reads there are at once, and what is done about slow ones.
        counters: Of everything that is met on the way.
    """

    def __init__(self, source: Source, options: SourceOptions, pipeline: PipelineOptions, counters: FetchCounters):
        self.counters = counters
        self._source = source
        self._pipeline = pipeline
        self._retries = Retries(options, counters)

    @property
    def location(self) -> Location:
        """Where the source is."""
        return self._source.location

    def metadata(self) -> RetryingSource:
        """For describing the checkpoint."""
        return RetryingSource(self._source, self._retries)

    def ranges(self, digests: Mapping[str, BlockDigests], on_flaw: OnFlaw) -> RangeReader:
        """For the lanes; of shards in `digests` they read whole blocks."""
        lanes = self._pipeline.lanes
        throttled = ThrottledReader(self._source, self._pipeline.throttling, lanes, self.counters)
        hedged = HedgingReader(
            throttled,
            self._pipeline.hedging,
            lanes,
            self.counters,
            read_again=throttled.read_again,
            is_held_back=throttled.is_held_back,
        )
        tried = RetryingRanges(hedged, self._retries)
        return Verified(tried, digests, self.counters, again=tried, place=self._source.location, on_flaw=on_flaw)
