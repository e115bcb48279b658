"""Who tries again and when: arithmetic alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.causes import Cause, cause_of
from streaming.counters import FetchCounters
from streaming.retry_policy import (
    FREE_RETRIES,
    LONGEST_WAIT_S,
    RETRY_SHARE,
    ROLE_GRACE_S,
    RULES,
    TURN_S,
    Budget,
    Policy,
)

SECONDS = st.floats(0, 200)
CAUSES = st.sampled_from(list(Cause))


def test_every_cause_has_a_rule():
    """And no rule is of anything else."""
    assert set(RULES) == set(Cause)


@given(
    cause=st.none() | CAUSES,
    retries=st.integers(0, 2000),
    elapsed_s=SECONDS,
    load_s=SECONDS,
    turn_s=SECONDS,
    draw=st.floats(0, 1),
    max_retries=st.integers(0, 2000),
    timeout_s=SECONDS,
)
def test_a_wait_is_within_every_limit(cause, retries, elapsed_s, load_s, turn_s, draw, max_retries, timeout_s):
    """Whoever may wait has a cause, retries and time left, waits at least for its turn and never longer than the bound."""
    wait_s = Policy(max_retries, timeout_s).wait_s(
        cause, retries=retries, elapsed_s=elapsed_s, load_s=load_s, turn_s=turn_s, draw=draw
    )
    if wait_s is None:
        return
    assert cause is not None
    assert retries < max_retries
    assert elapsed_s + wait_s < timeout_s
    assert turn_s <= wait_s <= max(turn_s, LONGEST_WAIT_S)
    assert cause is not Cause.ROLE or load_s <= ROLE_GRACE_S


@given(cause=CAUSES, retries=st.integers(0, 30), draw=st.floats(0, 1))
def test_what_has_time_and_retries_left_is_tried_again(cause, retries, draw):
    """And its longest wait grows with each attempt until it is the longest of all."""

    def wait_s(retries: int, draw: float) -> float:
        found = Policy(1000, 1e6).wait_s(cause, retries=retries, elapsed_s=0, load_s=0, turn_s=0, draw=draw)
        assert found is not None
        return found

    assert wait_s(retries, draw) == pytest.approx(draw * wait_s(retries, 1.0))
    assert wait_s(retries + 1, 1.0) == min(LONGEST_WAIT_S, 2 * wait_s(retries, 1.0))
    assert wait_s(0, 1.0) == RULES[cause].first_wait_s


@given(st.lists(st.tuples(st.sampled_from(["success", "failure"]), st.floats(0, 0.5)), max_size=500))
def test_the_budget_bounds_the_retries_of_any_load(events):
    """At any time at most what is free, a tenth of what succeeded, and one a second."""
    budget, now_s, successes = Budget(), 0.0, 0
    granted_s: list[float] = []
    for event, after_s in events:
        now_s += after_s
        if event == "success":
            budget.earn()
            successes += 1
        else:
            granted_s.append(now_s + budget.turn_s(now_s))
            budget.spend(now_s)
    for at_s in granted_s:
        made = sum(other_s <= at_s for other_s in granted_s)
        assert made <= FREE_RETRIES + RETRY_SHARE * successes + at_s / TURN_S + 1 + 1e-6


def test_who_is_over_the_budget_takes_turns():
    """The free ones at once, then one a second; who has earned again need not wait."""
    budget = Budget()
    waits_s = []
    for _ in range(FREE_RETRIES + 3):
        waits_s.append(budget.turn_s(5.0))
        budget.spend(5.0)
    assert waits_s == [0.0] * (FREE_RETRIES + 1) + [TURN_S, 2 * TURN_S]
    for _ in range(11):
        budget.earn()
    assert budget.turn_s(5.0) == 0.0


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("GET http://host/IncompleteBody/503?dns - Server returned non-2xx status code: 404 Not Found", None),
        ("GET http://host/503 - Server returned non-2xx status code: 500 Internal: kind: ConnectionReset", "500"),
        ("Debug source: ... error: IncompleteBody, kind: Interrupted", "truncated"),
        ("kind: Connect, source: InvalidCertificate(UnknownIssuer)", None),
        ("kind: Connect, source: Os { code: 113, kind: HostUnreachable }", "connect"),
        ("kind: Timeout, source: Connect, ConnectionReset", "timeout"),
        ("kind: Interrupted, source: Os { code: 32, kind: BrokenPipe }", "reset"),
        ("permission denied by the file system", None),
    ],
)
def test_the_status_decides_before_any_other_word(text, cause):
    """A body or a URL may hold the words of another cause; without a status the innermost one is told."""
    assert cause_of(text) == cause


@given(st.dictionaries(CAUSES, st.integers(1, 9)), st.dictionaries(CAUSES, st.integers(1, 9)), st.integers(0, 9))
def test_counters_of_two_loaders_add_up(first, second, hedges):
    """Cause by cause and count by count, and neither is changed."""
    one, other = FetchCounters(retries=dict(first), hedges=hedges), FetchCounters(retries=dict(second), hedges=3)
    both = one.plus(other)
    assert both.retries == {c: first.get(c, 0) + second.get(c, 0) for c in first | second}
    assert both.hedges == hedges + 3
    assert one.copied() == FetchCounters(retries=first, hedges=hedges)
