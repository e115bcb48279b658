"""Fourteen pods start at once and share one account's bandwidth and request limit."""

from __future__ import annotations

import importlib.util

import pytest

from streaming.options import SourceOptions
from tests.faults.schedules import Plan
from tests.faults.storm import storm

LOADS = 14
BYTES_PER_S = 4e6
# Two thirds of what the loads would ask for if nobody held back.
REQUESTS_PER_S = 60.0
# What is demanded once the loader holds back by itself, each as a multiple: of the ideal time, of the first one's time,
# of the least bytes. Until then no load may be corrupt, and each ends.
HOLDS_BACK = importlib.util.find_spec("streaming.throttling") is not None
MOST_SLOWEST, MOST_SPREAD, MOST_AMPLIFICATION = 2.5, 3.0, 1.1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_storm_of_loads_is_weathered(tiny):
    """All of them land the right bytes, none much later than the ideal, and next to nothing is fetched twice."""
    options = SourceOptions(max_retries=20, retry_timeout_s=90, request_timeout_s=30)
    with tiny.serve(bytes_per_s=BYTES_PER_S, requests_per_s=REQUESTS_PER_S) as server:
        seen = storm(server, options, loads=LOADS, bytes_per_s=BYTES_PER_S, requests_per_s=REQUESTS_PER_S)
    print(seen)
    for outcome in seen.outcomes:
        if outcome.error is None:
            tiny.check(outcome, Plan())
    assert seen.failed == 0
    if HOLDS_BACK:
        assert seen.slowest <= MOST_SLOWEST, seen
        assert seen.spread <= MOST_SPREAD, seen
        assert seen.amplification <= MOST_AMPLIFICATION, seen
