"""When each shard was fetched, waited and was copied."""

from __future__ import annotations

from streaming.messages import ShardTimes
from streaming.timings import Timings, whole


def test_a_stage_lasts_from_its_first_chunk_to_its_last():
    """Whatever the order in which chunks come and land."""
    timings = Timings()
    timings.fetched("a", 10, 1.0, 3.0)
    timings.fetched("a", 5, 0.5, 2.0)
    timings.taken("a", 3.0, 4.0)
    timings.taken("a", 2.0, 2.5)
    timings.landed("a", 6.0)
    timings.landed("a", 5.0)
    (times,) = timings.shards()
    assert times == ShardTimes(shard="a", nbytes=15, fetch=(0.5, 3.0), stage=(2.0, 4.0), copy=(2.5, 6.0))


def test_the_whole_spans_every_shard():
    """From the first beginning to the last end."""
    shards = [
        ShardTimes(shard=name, nbytes=1, fetch=fetch, stage=(0, 0), copy=(0, 0))
        for name, fetch in (("a", (1.0, 2.0)), ("b", (0.5, 1.5)))
    ]
    assert whole(shards, "fetch") == (0.5, 2.0)
