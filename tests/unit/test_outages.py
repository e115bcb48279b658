"""A load outlives what passes, and is not slower for longer than that: its own readers in simulated time."""

from __future__ import annotations

import asyncio
import random

import pytest

from streaming import retrying
from streaming.causes import Cause
from streaming.counters import FetchCounters
from streaming.errors import SourceUnavailable
from streaming.options import SourceOptions, ThrottlingOptions
from streaming.retrying import Retries, RetryingRanges
from streaming.throttling import ThrottledReader
from tests.simulated_load import SimulatedClock, land
from tests.simulated_time import VERSION, SlowSource, now_s, simulate


@pytest.fixture(autouse=True)
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries go by the simulated clock."""
    monkeypatch.setattr(retrying, "time", SimulatedClock)


class Broken:
    """A source that answers after about `takes_s`, and fails at once from `from_s` until `until_s`."""

    def __init__(self, takes_s: float, cause: Cause, from_s: float, until_s: float):
        self._takes_s, self._cause, self._from_s, self._until_s = takes_s, cause, from_s, until_s
        self.answered = 0

    async def read_range(self, version, start, end):
        """A byte, or the cause."""
        if self._from_s < now_s() < self._until_s:
            await asyncio.sleep(0.02)
            raise SourceUnavailable("no", cause=self._cause)
        await asyncio.sleep(self._takes_s * random.uniform(0.8, 1.2))
        self.answered += 1
        return b"x"


def seconds_of(source: Broken, reads: int, lanes: int) -> float:
    """How long a load takes that lands."""

    async def main() -> float:
        await land(source, reads, lanes, SourceOptions())
        return now_s()

    seconds = simulate(main())
    assert source.answered >= reads
    return seconds


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("lanes", "outage_s"), [(128, 0.7), (64, 2.0)])
def test_many_lanes_outlive_an_outage_together(lanes, outage_s, seed):
    """Each fails in the same moment, and none is given up because the others are tried again before it."""
    random.seed(seed)
    seconds = seconds_of(Broken(0.35, Cause.RESET, 1.0, 1.0 + outage_s), 2000, lanes)
    assert seconds < 60


def test_waits_at_the_gate_and_for_bandwidth_are_no_attempts():
    """The last of sixteen reads waits for three seconds before it begins, and is tried again though two are all a read may take."""
    last = 15_000_000
    broken = SourceUnavailable("reset", cause=Cause.RESET)
    source = SlowSource(lambda start, attempt: broken if start == last and attempt == 1 else 0.01)
    options = SourceOptions(retry_timeout_s=2.0)
    counters = FetchCounters()

    async def main() -> None:
        throttled = ThrottledReader(source, ThrottlingOptions(max_bandwidth_bytes_per_s=5_000_000), 16, counters)
        reader = RetryingRanges(throttled, Retries(options, counters, lanes=16))
        await asyncio.gather(*(reader.read_range(VERSION, at, at + 1_000_000) for at in range(0, last + 1, 1_000_000)))
        assert now_s() > options.retry_timeout_s

    simulate(main())
    assert counters.retries == {Cause.RESET: 1}


def test_attempts_and_their_waits_are_over_in_time():
    """A source that is gone is given up by the read's own clock."""
    source = SlowSource(lambda *_: SourceUnavailable("gone", cause=Cause.RESET))

    async def main() -> float:
        with pytest.raises(ExceptionGroup, match="unhandled") as caught:
            await land(source, 1, 1, SourceOptions(max_retries=1000, retry_timeout_s=10))
        assert "attempts in" in str(caught.value.exceptions[0])
        return now_s()

    assert 3 < simulate(main()) < 12


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("burst_s", "at_most_s"), [(2, 8.0), (5, 16.0), (10, 26.0)])
def test_a_burst_of_refusals_is_over_soon_after_it(burst_s, at_most_s, seed):
    """A load of three seconds: the burst, as long again at most because waits double, and twice the time without it."""
    random.seed(seed)
    assert 2.5 < seconds_of(Broken(0.05, Cause.UNAVAILABLE, 0.0, 0.0), 1000, 16) < 3.5
    assert seconds_of(Broken(0.05, Cause.UNAVAILABLE, 1.0, 1.0 + burst_s), 1000, 16) < at_most_s
