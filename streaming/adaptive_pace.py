"""How many reads a second a source bears, learned from its answers. Pure.

Takes when reads were answered and refused, by any one clock; gives how long the next one waits. A limit on reads at once cannot
do this alone: where a read is short, even one lane for each of many nodes asks too often. Without a refusal nothing is paced.

After a refusal the pace is a little below what the source had answered, returns to it slowly, and leaves it faster and faster
(a cubic, as of TCP): most of the time is spent near what is known to be borne, and what others leave is found within seconds.
"""

from __future__ import annotations

import math
from collections import deque

_REFUSED = 0.8
# When the pace at which reads were answered is reached again; twice that is as far above it as the refusal took it below.
_RETURN_S = 3.0
# Of fewer answers no rate follows; of more, one that is no longer true.
_LEAST_ANSWERS = 4
_MOST_ANSWERS = 16


class AdaptivePace:
    """The pace of one source, in reads per second."""

    def __init__(self) -> None:
        self._answered_s: deque[float] = deque(maxlen=_MOST_ANSWERS)
        self._borne_per_s = math.inf
        self._refused_s = -math.inf
        self._next_s = -math.inf

    def per_s(self, now_s: float) -> float:
        """Reads per second that may begin now; infinite before the first refusal."""
        if math.isinf(self._borne_per_s):
            return math.inf
        returned = (now_s - self._refused_s) / _RETURN_S - 1
        return self._borne_per_s * (1 + (1 - _REFUSED) * returned**3)

    def wait_s(self, now_s: float) -> float:
        """How long to wait before a read; its turn is taken."""
        start_s = max(now_s, self._next_s)
        self._next_s = start_s + 1 / self.per_s(now_s)
        return start_s - now_s

    def answered(self, now_s: float) -> None:
        """A read has got its bytes."""
        self._answered_s.append(now_s)

    def refused(self, began_s: float, now_s: float) -> None:
        """The source asked for fewer reads; of those that began before the last decrease, that was told already."""
        if began_s <= self._refused_s or len(self._answered_s) < _LEAST_ANSWERS:
            return
        seconds = now_s - self._answered_s[0]
        if seconds <= 0:
            return
        self._borne_per_s = min(self.per_s(now_s), len(self._answered_s) / seconds)
        self._refused_s = now_s
