"""What every load of a property has to have come to, and how many came to what.

Takes outcomes, the plans that were played to them, and the checkpoint that knows the right bytes. Knows no loader.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from streaming import errors
from tests.faults.faults import Overwrite
from tests.faults.loading import Outcome
from tests.faults.schedules import Plan

DEADLINE_S = 20.0
_CAUSE = re.compile(r"the last: (\w+)")


class Tally:
    """Checks outcomes and counts them; `secret` is in no message."""

    def __init__(self, secret: str = "sig="):
        self._secret = secret
        self.landed = 0
        self.errors: Counter[str] = Counter()
        self.longest_s = 0.0
        self.total_s = 0.0
        self.mismatches = 0
        self.healed = self.healed_from_cache = 0
        self.hedges = 0
        self.retries: Counter[str] = Counter()

    def check(self, outcome: Outcome, plan: Plan, checkpoint: Any) -> None:
        """Right bytes, or a typed error of one line without a secret; in time."""
        self._count(outcome)
        self._check(outcome, plan, checkpoint)

    def check_healed(self, outcome: Outcome, plan: Plan, checkpoint: Any) -> None:
        """After the faults, with what they left in a cache: right bytes, unless the manifest's blobs are gone for good."""
        is_overwritten = any(isinstance(rule.fault, Overwrite) for rule in plan.rules)
        assert outcome.error is None or (checkpoint.is_verified and is_overwritten), outcome.error
        self._check(outcome, plan, checkpoint)
        self.healed += outcome.error is None
        self.healed_from_cache += outcome.counters.cache_hit_bytes > 0

    def _check(self, outcome: Outcome, plan: Plan, checkpoint: Any) -> None:
        assert outcome.seconds < DEADLINE_S
        if outcome.error is None:
            checkpoint.check(outcome, plan)
            return
        assert issubclass(getattr(errors, outcome.error.kind), errors.StreamingError)
        assert outcome.error.message
        assert "\n" not in outcome.error.message
        assert not any(word in outcome.error.message for word in ("sig=", self._secret, self._secret.rstrip("=")))

    def _count(self, outcome: Outcome) -> None:
        self.longest_s = max(self.longest_s, outcome.seconds)
        self.total_s += outcome.seconds
        self.mismatches += outcome.counters.mismatches
        self.hedges += outcome.counters.hedges
        self.retries.update({str(cause): times for cause, times in outcome.counters.retries.items()})
        if outcome.error is None:
            self.landed += 1
        else:
            cause = _CAUSE.search(outcome.error.message)
            self.errors[f"{outcome.error.kind} {cause[1]}" if cause else outcome.error.kind] += 1

    def __str__(self) -> str:
        """A few words for a report."""
        return (
            f"{self.landed} landed, errors {dict(self.errors)}, {self.total_s:.0f} s in all, longest {self.longest_s:.1f} s of "
            f"{DEADLINE_S:g}; {self.mismatches} mismatches, {self.hedges} hedges, "
            f"retries {dict(self.retries)}; with a cache and no more faults: {self.healed} right, {self.healed_from_cache} from disk"
        )
