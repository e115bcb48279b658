"""Whether a read that failed is tried again, and when: pure arithmetic of causes, clocks and a budget.

Takes causes and seconds of any one clock, gives seconds to wait, or None to give up. Knows no source and never sleeps.
"""

from __future__ import annotations

from dataclasses import dataclass

from streaming.causes import Cause

LONGEST_WAIT_S = 15.0
ROLE_GRACE_S = 60.0
# Beyond what is free, a tenth of a load's reads may be repeated at once; each further repetition waits for its turn.
FREE_RETRIES = 32
RETRY_SHARE = 0.1
TURN_S = 1.0


@dataclass(frozen=True)
class Rule:
    """How a cause is met: `first_wait_s` bounds the first wait, and doubles with each further one.

    With `grace_s`, only so long after the load's beginning.
    """

    meaning: str
    first_wait_s: float
    grace_s: float | None = None


_BLIP_S, _BUSY_S = 0.5, 1.0

RULES = {
    Cause.TIMEOUT: Rule("no connection, no byte or no end in time", _BLIP_S),
    Cause.RESET: Rule("the connection was closed before the answer", _BLIP_S),
    Cause.REFUSED: Rule("nobody listened", _BLIP_S),
    Cause.DNS: Rule("the host's name was not resolved", _BLIP_S),
    Cause.CONNECT: Rule("no connection for another reason but a certificate", _BLIP_S),
    Cause.TRUNCATED: Rule("the answer ended early, or had another length than the range", _BLIP_S),
    Cause.WRONG_RANGE: Rule("the answer's Content-Range was another one, or none", _BLIP_S),
    Cause.ROLE: Rule(
        "AuthorizationPermissionMismatch for an Entra identity: a role assignment takes a while to spread",
        2.0,
        ROLE_GRACE_S,
    ),
    Cause.REQUEST_TIMEOUT: Rule("the service waited too long for the request", _BLIP_S),
    Cause.TOO_MANY: Rule("the service asks for less", _BUSY_S),
    Cause.INTERNAL: Rule("the service failed", _BLIP_S),
    Cause.BAD_GATEWAY: Rule("a proxy got no answer", _BLIP_S),
    Cause.UNAVAILABLE: Rule("the service is busy, or asks for less", _BUSY_S),
    Cause.GATEWAY_TIMEOUT: Rule("a proxy got no answer in time", _BLIP_S),
}


@dataclass(frozen=True)
class Policy:
    """At most `max_retries` of one read, none of them later than `timeout_s` after its first attempt."""

    max_retries: int
    timeout_s: float

    def wait_s(
        self, cause: Cause | None, *, retries: int, elapsed_s: float, load_s: float, turn_s: float, draw: float
    ) -> float | None:
        """How long to wait before the next attempt; None to give up.

        Exponential backoff with full jitter: anything between nothing and the bound, so that lanes and pods that failed
        together do not come back together.

        Args:
            cause: Why the last attempt failed; None where another would fail, too.
            retries: Of this read, made already.
            elapsed_s: Since its first attempt.
            load_s: Since the load began.
            turn_s: Until the budget has room.
            draw: The jitter, from 0 to 1.
        """
        if cause is None or retries >= self.max_retries:
            return None
        rule = RULES[cause]
        if rule.grace_s is not None and load_s > rule.grace_s:
            return None
        bound_s = min(LONGEST_WAIT_S, rule.first_wait_s * 2 ** min(retries, 10))
        wait_s = max(turn_s, draw * bound_s)
        return wait_s if elapsed_s + wait_s < self.timeout_s else None


class Budget:
    """How many extra requests one load may make, so that many pods on a bad day do not make it worse.

    `FREE_RETRIES`, and one more for every ten reads that succeed; who is beyond that has a turn every `TURN_S`. Taking turns
    rather than giving up: a pod that gave up would start again, and fetch anew what it had.
    """

    def __init__(self) -> None:
        self._left = float(FREE_RETRIES)
        self._next_turn_s = float("-inf")

    def earn(self) -> None:
        """A read has succeeded."""
        self._left += RETRY_SHARE

    def turn_s(self, now_s: float) -> float:
        """Seconds until another retry may be made."""
        return 0.0 if self._left >= 1 else max(0.0, self._next_turn_s - now_s)

    def spend(self, now_s: float) -> None:
        """A retry is made at the turn that `turn_s` has told, or later."""
        if self._left >= 1:
            self._left -= 1
        else:
            self._next_turn_s = max(now_s, self._next_turn_s) + TURN_S
