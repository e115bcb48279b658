"""Reads per second follow what a source answers; arithmetic, and fourteen loads' own readers in simulated time."""

from __future__ import annotations

import asyncio
import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming import retrying
from streaming.adaptive_pace import AdaptivePace
from streaming.causes import Cause
from streaming.counters import FetchCounters
from streaming.errors import SourceUnavailable
from streaming.hedging import HedgingReader
from streaming.options import HedgingOptions, SourceOptions, ThrottlingOptions
from streaming.retrying import Retries, RetryingRanges
from streaming.throttling import ThrottledReader
from tests.simulated_time import VERSION, now_s, simulate

EVENTS = st.lists(st.tuples(st.sampled_from(["begin", "answer", "refusal"]), st.floats(0, 2)), max_size=200)


@given(EVENTS)
def test_without_a_refusal_nobody_waits(events):
    """Whatever is answered, and when."""
    pace, now = AdaptivePace(), 0.0
    for event, after_s in events:
        now += after_s
        if event == "answer":
            pace.answered(now)
        else:
            assert pace.wait_s(now) == 0.0


@given(EVENTS)
def test_the_pace_is_never_nothing_and_a_refusal_never_raises_it(events):
    """Whatever happens, a read's turn comes."""
    pace, now = AdaptivePace(), 0.0
    for event, after_s in events:
        now += after_s
        before = pace.per_s(now)
        if event == "answer":
            pace.answered(now)
        elif event == "refusal":
            pace.refused(now, now)
            assert pace.per_s(now) <= before
        else:
            assert 0.0 <= pace.wait_s(now) < math.inf
        assert pace.per_s(now) > 0


def paced(per_s: float) -> tuple[AdaptivePace, float]:
    """A pace after sixteen answers at that rate and a refusal, and when that came."""
    pace = AdaptivePace()
    for number in range(16):
        pace.answered(number / per_s)
    pace.refused(15.5 / per_s, 16 / per_s)
    return pace, 16 / per_s


def test_a_refusal_takes_the_pace_below_what_was_answered_and_it_returns():
    """A fifth below, there again after three seconds, and within half a minute at a hundred times as much."""
    pace, refused_s = paced(10.0)
    after = {seconds: pace.per_s(refused_s + seconds) for seconds in (0, 3, 6, 30)}
    assert after[0] == pytest.approx(8.0)
    assert after[3] == pytest.approx(10.0)
    assert after[6] == pytest.approx(12.0)
    assert after[30] > 1000


def test_reads_begin_one_by_one():
    """Four that come together after a refusal begin at the pace, each behind the other."""
    pace, refused_s = paced(10.0)
    assert [pace.wait_s(refused_s) for _ in range(4)] == pytest.approx([0, 0.125, 0.25, 0.375])


def test_refusals_of_reads_that_were_under_way_count_once():
    """What began before the decrease met what the decrease was for."""
    pace, refused_s = paced(10.0)
    before = pace.per_s(refused_s + 1)
    pace.refused(refused_s - 0.01, refused_s + 1)
    assert pace.per_s(refused_s + 1) == before


class Account:
    """A source that refuses what is more than `per_s` reads a second, of which a second's may come together."""

    def __init__(self, per_s: float):
        self._per_s, self._left, self._at_s = per_s, per_s, 0.0
        self.asked = self.answered = 0

    async def read_range(self, version, start, end):
        """One byte, or 503 at once."""
        self.asked += 1
        await asyncio.sleep(0.01)
        self._left = min(self._per_s, self._left + (now_s() - self._at_s) * self._per_s)
        self._at_s = now_s()
        if self._left < 1:
            raise SourceUnavailable("busy", cause=Cause.UNAVAILABLE, status=503)
        self._left -= 1
        self.answered += 1
        return b"x"


class _SimulatedClock:
    monotonic = staticmethod(now_s)


async def one_load(account: Account, reads: int, lanes: int, starts_s: float) -> float:
    """As `streaming.reading` puts them together; gives its seconds."""
    await asyncio.sleep(starts_s)
    counters = FetchCounters()
    throttled = ThrottledReader(account, ThrottlingOptions(), lanes, counters)
    hedged = HedgingReader(
        throttled,
        HedgingOptions(),
        lanes,
        counters,
        read_again=throttled.read_again,
        is_held_back=throttled.is_held_back,
    )
    tried = RetryingRanges(hedged, Retries(SourceOptions(max_retries=20, retry_timeout_s=90), counters))
    todo = itertools.count()

    async def lane() -> None:
        while (start := next(todo)) < reads:
            await tried.read_range(VERSION, start, start + 1)

    await asyncio.gather(*(lane() for _ in range(lanes)))
    return now_s() - starts_s


def test_fourteen_loads_weather_a_limit_on_requests(monkeypatch):
    """Asked 5 % more often than needed at most, refusals and second reads included, and nobody takes twice the ideal time."""
    monkeypatch.setattr(retrying, "time", _SimulatedClock)
    random.seed(1)
    account, reads, per_s = Account(200.0), 512, 200.0

    async def main() -> list[float]:
        starts_s = [random.uniform(0, 3) for _ in range(14)]
        return await asyncio.gather(*(one_load(account, reads, 4, start_s) for start_s in starts_s))

    seconds = simulate(main())
    assert account.answered >= 14 * reads
    assert account.asked <= 1.05 * 14 * reads
    assert max(seconds) <= 2 * 14 * reads / per_s
