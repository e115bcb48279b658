"""A slow range is read twice: which ones, at what price, and what is left behind."""

from __future__ import annotations

import asyncio
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.counters import FetchCounters
from streaming.errors import SourceUnavailable
from streaming.hedging import HedgePolicy, HedgingReader
from streaming.options import HedgingOptions, PipelineOptions
from tests.simulated_time import VERSION, SlowSource, now_s, simulate

BROKEN = SourceUnavailable("broken")
OPTIONS = HedgingOptions()


async def read_all(reader, sizes, lanes):
    """Ranges one behind the other, by so many lanes; what came of each, and when the last one had."""
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    todo = iter([(end - size, end) for end, size in zip(ends, sizes, strict=True)])
    results = {}

    async def lane():
        for start, end in todo:
            try:
                results[start, end] = await reader.read_range(VERSION, start, end)
            except SourceUnavailable as error:
                results[start, end] = error

    await asyncio.gather(*(lane() for _ in range(lanes)))
    return results, now_s()


def hedged(takes, sizes, *, lanes=16, options=OPTIONS, **arguments):
    """The source, the counters, what came and when, of a load through a hedging reader."""
    source, counters = SlowSource(takes), FetchCounters()
    at_once = PipelineOptions(lanes=lanes, hedging=options).second_reads
    results, seconds = simulate(read_all(HedgingReader(source, options, at_once, counters, **arguments), sizes, lanes))
    assert source.running == 0
    return source, counters, results, seconds


# Of reads that are slow but alive none takes as long as a dead one: half a second at least.
ALIVE = st.sampled_from([0.1, 0.1, 0.1, 0.1, 0.12, 0.3, 0.35, 0.45])
DEAD = st.sampled_from([BROKEN, 5.0, 100.0])


def played(ranges, lanes, budget_ratio):
    """A load of `(size, fates)`; of those the last one is for every further attempt, too."""
    sizes = [size for size, _ in ranges]
    fates = {sum(sizes[:index]): fates for index, (_, fates) in enumerate(ranges)}
    fate = lambda start, attempt: fates[start][min(attempt, len(fates[start])) - 1]  # noqa: E731
    options = HedgingOptions(budget_ratio=budget_ratio)
    source, counters, results, _ = hedged(fate, sizes, lanes=lanes, options=options)
    for (start, end), result in results.items():
        tried = {fate(start, attempt + 1) for attempt in range(source.attempts[start])}
        assert result == (BROKEN if tried == {BROKEN} else b"%d-%d" % (start, end)) or result is BROKEN in tried
    assert source.asked_bytes - sum(sizes) == counters.wasted_bytes
    assert sum(source.attempts.values()) - len(sizes) == counters.hedges + counters.retries.get("timeout", 0)
    assert counters.hedges >= counters.hedges_won
    assert source.most_running <= lanes + max(1, lanes // 8)
    return source, counters, results


@given(
    st.lists(st.tuples(st.integers(1, 1000), st.tuples(ALIVE, ALIVE)), min_size=1, max_size=60),
    st.integers(1, 16),
    st.sampled_from([0.0, 0.05, 0.2]),
)
def test_every_range_is_read_once_or_twice_within_the_budget(ranges, lanes, budget_ratio):
    """Whatever is slow: the right bytes, at most one read more per range, and no more extra bytes than allowed."""
    _, counters, results = played(ranges, lanes, budget_ratio)
    sizes = [end - start for start, end in results]
    assert counters.wasted_bytes <= (budget_ratio * sum(sizes) + max(sizes) if budget_ratio else 0)
    assert not counters.retries


@given(
    st.lists(
        st.tuples(st.integers(1, 1000), st.lists(ALIVE | DEAD, max_size=3).map(lambda fates: (*fates, 0.1))), min_size=1
    ),
    st.integers(1, 16),
)
def test_whatever_is_dead_the_bytes_are_right(ranges, lanes):
    """Reads are counted, and never more than two of one range, nor more second reads than promised, run at once."""
    played(ranges, lanes, 0.05)


@given(
    st.lists(st.tuples(st.sampled_from([0.1, 0.1, 0.1, 20.0]), st.sampled_from([0.0, 0.5, 5.0])), max_size=60),
    st.integers(1, 24),
)
def test_never_more_chunks_are_held_than_promised(ranges, lanes):
    """Whatever stalls, and however long lanes wait for a writer: reads hold two chunks each, such lanes one."""
    pipeline = PipelineOptions(lanes=lanes, hedging=HedgingOptions(budget_ratio=1.0))
    todo, waiting, held = iter(range(len(ranges))), 0, [0]

    def begins(start, _):
        held.append(2 * (source.running + 1) + waiting)
        return ranges[start][0]

    source = SlowSource(begins)
    reader = HedgingReader(source, pipeline.hedging, pipeline.second_reads, FetchCounters())

    async def lane():
        nonlocal waiting
        for start in todo:
            await reader.read_range(VERSION, start, start + 1)
            waiting += 1
            await asyncio.sleep(ranges[start][1])
            waiting -= 1

    async def load():
        await asyncio.gather(*(lane() for _ in range(lanes)))

    simulate(load())
    assert max(held) <= 2 * (pipeline.lanes + pipeline.second_reads) <= pipeline.chunks_held


def test_a_stall_of_the_last_range_costs_a_few_reads_time():
    """Not the stall's: another read of it begins once it takes far longer than its peers did."""
    takes = lambda start, attempt: 60.0 if (start, attempt) == (90, 1) else 0.1  # noqa: E731
    source, counters, _, seconds = hedged(takes, [10] * 10, lanes=2)
    assert source.attempts[90] == 2
    assert (counters.hedges, counters.hedges_won, counters.wasted_bytes) == (1, 1, 10)
    assert 0.5 + OPTIONS.floor_s <= seconds < 1.5


def test_one_range_in_twenty_may_stall_without_slowing_the_load():
    """Every stalled one is read again, and the load takes at most 1.3 times as long as without stalls, not a stall more."""
    takes = lambda start, attempt: 30.0 if start % 200 == 100 and attempt == 1 else 0.2  # noqa: E731
    source, counters, _, seconds = hedged(takes, [10] * 400)
    assert counters.hedges == counters.hedges_won == 20
    assert source.asked_bytes <= 1.05 * 4000 + 10
    assert seconds < 1.3 * 400 / 16 * 0.2


def ratio_to_clean(share, seed, typical_s=0.2):
    """Of a load of 300 ranges, each read of which stalls for ever with this probability, second reads included."""
    draw = random.Random(seed)
    ordinary = lambda: typical_s * draw.uniform(0.8, 1.2)  # noqa: E731
    clean_s = hedged(lambda *_: ordinary(), [10] * 300)[-1]
    return hedged(lambda *_: 1e6 if draw.random() < share else ordinary(), [10] * 300)[-1] / clean_s


@pytest.mark.parametrize(("share", "median", "worst"), [(0.05, 1.3, 1.6), (0.1, 2.0, 3.0)])
def test_dead_connections_cost_a_part_of_the_load(share, median, worst):
    """However many more than second reads are allowed for there are, and whether or not these stall themselves."""
    ratios = [ratio_to_clean(share, seed) for seed in range(12)]
    assert statistics.median(ratios) <= median
    assert max(ratios) <= worst


@pytest.mark.parametrize("times", [3, 10, 50])
def test_a_source_that_slows_down_is_not_asked_for_more(times):
    """All reads are slow from a moment on: the budget and one range bound what is asked for, although none is dead."""
    draw = random.Random(times)
    takes = lambda *_: 0.1 * draw.uniform(0.8, 1.2) * (times if now_s() >= 0.5 else 1)  # noqa: E731
    source, counters, *_ = hedged(takes, [10] * 300)
    assert counters.wasted_bytes == source.asked_bytes - 3000 <= 0.05 * 3000 + 10


def test_a_trial_in_vain_is_an_extra_read():
    """While the budget is overdrawn no other range is on trial, nor read twice; what was dead costs nothing."""
    policy = HedgePolicy(OPTIONS, at_once=2)
    for _ in range(100):
        policy.asked(10)
    assert policy.begin_trial()
    assert policy.begin_trial()
    assert not policy.begin_trial()
    policy.end_trial(0)
    assert policy.begin_trial()
    policy.end_trial(30)
    policy.end_trial(40)  # 70 bytes in vain of 60 that are allowed
    assert not policy.begin_trial()
    assert not policy.begin_second(1)
    for _ in range(40):
        policy.asked(10)
    assert policy.begin_trial()


def test_a_slow_read_that_still_comes_first_wins():
    """The other one is cancelled, and was for nothing."""
    takes = lambda start, attempt: 0.1 if start < 90 else (0.45 if attempt == 1 else 60.0)  # noqa: E731
    _, counters, _, seconds = hedged(takes, [10] * 10, lanes=2)
    assert (counters.hedges, counters.hedges_won, counters.wasted_bytes) == (1, 0, 10)
    assert seconds < 2


def test_one_lane_alone_can_be_helped():
    """The second read needs no lane of its own."""
    takes = lambda start, attempt: 60.0 if (start, attempt) == (50, 1) else 0.1  # noqa: E731
    _, counters, _, seconds = hedged(takes, [10] * 10, lanes=1)
    assert counters.hedges_won == 1
    assert seconds < 3


@pytest.mark.parametrize("breaks", [1, 2])
def test_one_broken_read_of_two_does_not_fail_the_range(breaks):
    """Whichever of the two it is: the other one is waited for."""
    takes = lambda start, attempt: 0.01 if start < 90 else (BROKEN if attempt == breaks else 3.0)  # noqa: E731
    _, counters, results, _ = hedged(takes, [10] * 10, lanes=2)
    assert counters.hedges == 1
    assert results[90, 100] == b"90-100"


def test_a_read_that_breaks_alone_fails_at_once():
    """Trying again is not the matter of this layer."""
    _, counters, results, _ = hedged(lambda *_: BROKEN, [10])
    assert results[0, 10] is BROKEN
    assert counters.hedges == 0


def test_a_quick_source_is_not_held_to_its_own_pace():
    """Where reads take a hundredth of a second one is slow after a tenth, and dead after half a second, then after a whole one."""
    policy = HedgePolicy(OPTIONS, at_once=2)
    for _ in range(5):
        policy.ended(10, 0.01)
    assert [policy.is_slow(10, seconds) for seconds in (0.09, 0.11)] == [False, True]
    assert [policy.is_dead(10, seconds, 1) for seconds in (0.49, 0.51)] == [False, True]
    assert [policy.is_dead(10, seconds, 2) for seconds in (0.99, 1.01)] == [False, True]


@pytest.mark.parametrize(
    "reason",
    ["no peers", "no budget", "held back", "a large range among small ones", "within the floor"],
)
def test_what_is_not_read_twice(reason):
    """Nothing is known to be slow, may be asked for, or would be faster the second time."""
    sizes = [10] * 9 + [100 if reason == "a large range among small ones" else 10]
    takes = {"a large range among small ones": 0.9, "within the floor": 0.08}.get(reason, 5.0)
    _, counters, _, _ = hedged(
        lambda start, _: takes if start == 90 else (0.01 if reason == "within the floor" else 0.1),
        sizes[-1:] * 2 if reason == "no peers" else sizes,
        options=HedgingOptions(budget_ratio=0 if reason == "no budget" else 0.05),
        is_held_back=lambda: reason == "held back",
    )
    assert counters.hedges == 0


@given(st.floats(0.0, 3.0))
def test_a_cancelled_load_leaves_no_read_behind(after_s):
    """At whatever moment: first reads, second reads and the tasks around them are gone."""
    source = SlowSource(lambda start, _: 0.1 if start < 80 else 60.0)

    async def cancelled() -> None:
        load = asyncio.create_task(read_all(HedgingReader(source, OPTIONS, 4, FetchCounters()), [10] * 10, 4))
        await asyncio.sleep(after_s)
        load.cancel()
        with pytest.raises(asyncio.CancelledError):
            await load

    simulate(cancelled())
    assert source.running == 0
