"""Reads wait their turn: by number, by bytes per second, and by what the source bears."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.causes import cause_of
from streaming.counters import FetchCounters
from streaming.errors import SourceUnavailable
from streaming.options import ThrottlingOptions
from streaming.throttling import Bandwidth, ThrottledReader, asks_for_less, start_wait_s
from tests.simulated_time import VERSION, SlowSource, now_s, simulate


def answered(status: int) -> SourceUnavailable:
    """The error of a source that answered so."""
    return SourceUnavailable("no", cause=cause_of(f"status code: {status}"), status=status)


@given(
    st.lists(st.tuples(st.floats(0, 5), st.sampled_from([0.5, 1.0, 503, 500]), st.floats(0, 8)), max_size=40),
    st.integers(1, 6),
)
def test_never_more_reads_than_lanes_and_no_turn_is_lost(reads, lanes):
    """Whenever they come, break or are cancelled, and whatever the limit has become: after them, all lanes' worth gets through."""
    fates = [answered(fate) if isinstance(fate, int) else fate for _, fate, _ in reads]
    source = SlowSource(lambda start, _: fates[start] if start < len(fates) else 1.0)

    async def one(reader, number):
        await asyncio.sleep(reads[number][0])
        with contextlib.suppress(SourceUnavailable):
            await reader.read_range(VERSION, number, number + 1)

    async def main():
        reader = ThrottledReader(source, ThrottlingOptions(), lanes, FetchCounters())
        tasks = [asyncio.create_task(one(reader, number)) for number in range(len(reads))]
        for task, (_, _, cancelled_s) in sorted(zip(tasks, reads, strict=True), key=lambda pair: pair[1][2]):
            await asyncio.sleep(max(0.0, cancelled_s - now_s()))
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert source.running == 0
        assert not reader.is_held_back()
        for _ in range(4 * lanes):  # the limit has grown back to the lanes
            await asyncio.gather(*(reader.read_range(VERSION, len(reads), len(reads) + 1) for _ in range(2 * lanes)))
        assert source.running == 0

    source_before = source.most_running
    simulate(main())
    assert source_before == 0
    assert source.most_running == lanes


def test_fewer_at_once_after_a_503_and_other_reads_wait_meanwhile():
    """Ten lanes whose source answers 503 once are seven; it is counted, and told of while reads wait for it."""
    source = SlowSource(lambda start, _: answered(503) if start == 0 else 2.0)
    counters = FetchCounters()
    held_back = []

    async def main():
        reader = ThrottledReader(source, ThrottlingOptions(), 10, counters)

        async def one(start):
            with contextlib.suppress(SourceUnavailable):
                await reader.read_range(VERSION, start, start + 1)

        first = asyncio.gather(*(one(start) for start in range(20)))
        await asyncio.sleep(0.5)
        held_back.append(reader.is_held_back())
        await asyncio.sleep(1)
        held_back.append(reader.is_held_back())
        await asyncio.sleep(1)
        assert source.running == 7
        await first

    simulate(main())
    assert held_back == [False, True]
    assert counters.throttles == 1


@pytest.mark.parametrize(("refused", "running"), [(False, 3), (True, 1)])
def test_a_second_read_needs_a_turn_only_where_the_limit_is_lowered(refused, running):
    """Beside two lanes that are taken it begins at once, unless the source has asked for less."""
    source = SlowSource(lambda start, _: answered(503) if start == 0 else 100.0)

    async def main():
        reader = ThrottledReader(source, ThrottlingOptions(), 2, FetchCounters())
        if refused:
            with pytest.raises(SourceUnavailable):
                await reader.read_range(VERSION, 0, 1)
        async with asyncio.TaskGroup() as group:
            for read in (reader.read_range, reader.read_range, reader.read_again):
                group.create_task(read(VERSION, 1, 2))
            await asyncio.sleep(1)
            assert source.running == running

    simulate(main())


@pytest.mark.parametrize(("status", "expected"), [(503, True), (429, True), (500, False), (403, False)])
def test_which_answers_ask_for_less(status, expected):
    """Busy and too many requests; nothing else."""
    assert asks_for_less(answered(status)) is expected


@given(
    st.lists(st.tuples(st.floats(0, 2), st.integers(1, 1000)), min_size=1, max_size=40),
    st.floats(1, 1000),
)
def test_bandwidth_is_kept_over_every_interval(reads, bytes_per_s):
    """From any read to any later one, no more begins than the rate allows and one read; nobody waits longer than needed."""
    bucket, now = Bandwidth(bytes_per_s), 0.0
    begun = []
    for gap_s, nbytes in reads:
        now += gap_s
        wait_s = bucket.wait_s(nbytes, now)
        assert wait_s == 0 or abs(now + wait_s - begun[-1][0] - begun[-1][1] / bytes_per_s) < 1e-6
        begun.append((now + wait_s, nbytes))
    for first in range(len(begun)):
        for last in range(first, len(begun)):
            earlier_bytes = sum(nbytes for _, nbytes in begun[first:last])
            assert earlier_bytes <= bytes_per_s * (begun[last][0] - begun[first][0]) + 1e-6


def test_lanes_share_one_bandwidth():
    """Sixteen lanes together take as long as their bytes at that rate."""
    source = SlowSource(lambda *_: 0.001)

    async def main():
        reader = ThrottledReader(source, ThrottlingOptions(max_bandwidth_bytes_per_s=100), 16, FetchCounters())
        await asyncio.gather(*(reader.read_range(VERSION, start, start + 10) for start in range(0, 1000, 10)))
        return now_s()

    assert 9.9 <= simulate(main()) < 10


@given(st.floats(0, 100))
def test_the_start_is_put_off_by_at_most_the_jitter(start_jitter_s):
    """And not at all by default."""
    assert 0 <= start_wait_s(start_jitter_s) <= start_jitter_s
    assert start_wait_s(ThrottlingOptions().start_jitter_s) == 0
