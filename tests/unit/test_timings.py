"""When each shard was fetched, waited and was copied, and how long its reads took."""

from __future__ import annotations

import bisect

from hypothesis import given
from hypothesis import strategies as st

from streaming.messages import RANGE_BUCKETS_S, Chunk, ShardTimes
from streaming.timings import SLOWEST_RANGES, Timings, whole


def chunk(start: int, nbytes: int) -> Chunk:
    return Chunk(chunk_id=start, shard="a", start=start, end=start + nbytes, segments=())


def test_a_stage_lasts_from_its_first_chunk_to_its_last():
    """Whatever the order in which chunks come and land."""
    timings = Timings()
    timings.fetched(chunk(0, 10), 1.0, 3.0)
    timings.fetched(chunk(10, 5), 0.5, 2.0)
    timings.taken("a", 3.0, 4.0)
    timings.taken("a", 2.0, 2.5)
    timings.landed("a", 6.0)
    timings.landed("a", 5.0)
    (times,) = timings.shards()
    assert (times.shard, times.nbytes) == ("a", 15)
    assert (times.fetch, times.stage, times.copy) == ((0.5, 3.0), (2.0, 4.0), (2.5, 6.0))


@given(st.lists(st.sampled_from([*RANGE_BUCKETS_S, 0.0, 0.3, 3.0, 61.0, 600.0]), min_size=1, max_size=50))
def test_reads_are_counted_by_what_they_took_and_the_slowest_are_kept(seconds):
    """A bound belongs to its bucket, as in Prometheus; a few reads are told of, however many there were."""
    timings = Timings()
    for index, each in enumerate(seconds):
        timings.fetched(chunk(10 * index, 10), 0.0, each)
        timings.taken("a", each, each)
    (times,) = timings.shards()
    cumulated = [sum(times.ranges.counts[: index + 1]) for index in range(len(times.ranges.counts))]
    assert cumulated == [bisect.bisect_right(sorted(seconds), bound) for bound in (*RANGE_BUCKETS_S, float("inf"))]
    assert abs(times.ranges.sum_s - sum(seconds)) < 1e-6
    slowest = [found.end_s - found.start_s for found in times.ranges.slowest]
    assert slowest == sorted(seconds, reverse=True)[:SLOWEST_RANGES]
    assert all(seconds[found.start // 10] == found.end_s for found in times.ranges.slowest)


def test_the_whole_spans_every_shard():
    """From the first beginning to the last end."""
    shards = [
        ShardTimes(shard=name, nbytes=1, fetch=fetch, stage=(0, 0), copy=(0, 0))
        for name, fetch in (("a", (1.0, 2.0)), ("b", (0.5, 1.5)))
    ]
    assert whole(shards, "fetch") == (0.5, 2.0)
