"""Schedules of faults as plain values, and the hypothesis strategies that draw them.

A `Plan` is what a failing example prints: the same plan meets the same requests with the same faults, whatever
order the lanes ask in, because a rule looks at a range and how often it was asked for, never at the clock.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from hypothesis import strategies as st

from tests.faults.blobs import Request
from tests.faults.faults import (
    GARBLED_HEADS,
    Cut,
    Fault,
    FlipBit,
    Garbled,
    Latency,
    Overwrite,
    Refusal,
    Refuse,
    Reset,
    ShortRange,
    Stall,
    Trickle,
    Whole,
    WrongLength,
    WrongRange,
)


@dataclass(frozen=True)
class Rule:
    """A share of the ranges (chosen by `seed`) meets the fault, on the first `attempts` of each (None: for ever).

    `weights_only` leaves out what describes the checkpoint: reads from a blob's beginning, and other files.
    """

    fault: Fault
    share: float = 1.0
    attempts: int | None = 1
    weights_only: bool = False
    seed: int = 0

    def meets(self, request: Request, attempt: int) -> bool:
        """Whether the `attempt`-th time (from 0) that this range is asked for goes wrong."""
        if self.attempts is not None and attempt >= self.attempts:
            return False
        if self.weights_only and not (request.start and request.name.endswith(".safetensors")):
            return False
        return random.Random(f"{self.seed} {request.path} {request.goal}").random() < self.share


@dataclass(frozen=True)
class Plan:
    """Rules, of which the first that meets a request decides."""

    rules: tuple[Rule, ...] = ()

    def schedule(self) -> PlannedFaults:
        """The plan from its beginning, for one server."""
        return PlannedFaults(self)


class PlannedFaults:
    """A plan being played: it counts how often each range was asked for."""

    def __init__(self, plan: Plan):
        self._plan = plan
        self._attempts: Counter[tuple[str, str]] = Counter()

    def __call__(self, request: Request) -> Fault:
        """What this request meets."""
        key = (request.path, request.goal)
        attempt = self._attempts[key]
        self._attempts[key] += 1
        return next((rule.fault for rule in self._plan.rules if rule.meets(request, attempt)), Fault())


# None is before the headers; the others are within a chunk, at its beginning more often than not.
_after_bytes = st.none() | st.integers(0, 60_000)
_statuses = st.sampled_from([503, 429, 500, 403])

slow = st.one_of(
    st.builds(Latency, st.sampled_from([0.02, 0.1, 0.3])),
    st.builds(Trickle, st.sampled_from([4096, 512, 1]), st.sampled_from([0.005, 0.05])),
)
broken = st.one_of(
    st.builds(Refusal, _statuses, st.none() | st.sampled_from([0, 1, 30])),
    st.builds(Reset, _after_bytes),
    st.builds(Cut, _after_bytes),
    st.builds(Stall, _after_bytes),
    st.builds(Refuse, st.sampled_from([0.05, 0.3])),
)
wrong = st.one_of(
    st.builds(WrongRange, st.sampled_from([1, -1, 4096, 1 << 20])),
    st.builds(ShortRange, st.sampled_from([1, 4096])),
    st.just(Whole()),
    st.builds(WrongLength, st.sampled_from([1, -1, 4096, -4096])),
    st.builds(Garbled, st.sampled_from(sorted(GARBLED_HEADS))),
    st.builds(Overwrite, st.booleans()),
)
flips = st.builds(FlipBit, st.integers(0, 500_000))

_shares = st.sampled_from([0.05, 0.2, 0.5, 1.0])
_attempts = st.sampled_from([1, 2, 5, None])


def plans(*kinds: st.SearchStrategy[Fault]) -> st.SearchStrategy[Plan]:
    """Plans of one to four rules, whose faults are of each kind as often."""
    faults = st.sampled_from(kinds).flatmap(lambda kind: kind)
    rules = st.builds(Rule, faults, _shares, _attempts, st.booleans(), st.integers(0, 99))
    return st.builds(Plan, st.lists(rules, min_size=1, max_size=4).map(tuple))


@dataclass(frozen=True)
class Case:
    """A plan, what it is played to, and how often the load tries again."""

    plan: Plan
    has_manifest: bool
    has_cache: bool
    max_retries: int


def _cases(*, has_manifest: bool) -> st.SearchStrategy[Case]:
    # Without a manifest nobody can tell a flipped bit.
    kinds = (slow, broken, wrong, flips) if has_manifest else (slow, broken, wrong)
    return st.builds(Case, plans(*kinds), st.just(has_manifest), st.booleans(), st.sampled_from([1, 4]))


CASES = _cases(has_manifest=True) | _cases(has_manifest=False)


# What may happen to a good source for a moment: by name, so that a test can demand each. A whole blob
# with 200 is no such thing: that source knows no ranges.
CLEARING: dict[str, Fault] = {
    "late": Latency(0.3),
    "slow": Trickle(4096, 0.005),
    "503": Refusal(503),
    "503-retry-after": Refusal(503, 1),
    "429": Refusal(429),
    "500": Refusal(500),
    "reset": Reset(),
    "reset-in-body": Reset(5000),
    "cut": Cut(),
    "cut-in-body": Cut(5000),
    "stall": Stall(),
    "stall-in-body": Stall(5000),
    "loris": Trickle(1, 0.05),
    "refused": Refuse(0.1),
    "wrong-range": WrongRange(4096),
    "short-range": ShortRange(1),
    "longer": WrongLength(4096),
    "shorter": WrongLength(-1),
}
