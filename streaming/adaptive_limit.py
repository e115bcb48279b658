"""How many reads at once a source bears, learned from its answers: additive increase, multiplicative decrease. Pure.

Takes what became of each read, gives a number. It begins at the most, because a cold start has no time to probe upwards. A
refusal lowers it at once. Answers that take far longer than the best ones did lower it, too, if that helps: where fewer
reads are as slow as more of them were, their number was not the reason, and the decrease is taken back.
"""

from __future__ import annotations

_REFUSED = 0.7
_INFLATED = 0.8
# Between the two inflations nothing changes, so that the limit does not swing around one of them.
_HEALTHY_BELOW = 1.5
_INFLATED_ABOVE = 3.0
_HELPED_BELOW = 0.9
_WINDOW = 16
# A limit of one or two would else be raised, and refused, with every other answer.
_LEAST_ANSWERS_PER_STEP = 4


class AdaptiveLimit:
    """The limit of one source, from `least` to `most`, both included.

    A read is told by the round in which it began, as `round` gave it: what it met is the doing of that round's limit, so a
    refusal lowers the limit once for all the reads that were under way.
    """

    def __init__(self, most: int, *, least: int = 1):
        self._most = most
        self._least = min(least, most)
        self._exact = float(most)
        self._inflation = _Inflation()
        self._is_healthy = True
        self._reduced_at_s_per_byte: float | None = None
        self.round = 0

    @property
    def current(self) -> int:
        """How many reads may be under way."""
        return int(self._exact)

    @property
    def is_reduced(self) -> bool:
        """Whether it is lower than asked for."""
        return self.current < self._most

    def answered(self, began_in: int, nbytes: int, seconds: float) -> None:
        """A read of so many bytes took so long."""
        if began_in != self.round:
            return
        if self._inflation.add(nbytes, seconds):
            self._judge()
        if self._is_healthy:
            self._exact = min(float(self._most), self._exact + 1 / max(self._exact, _LEAST_ANSWERS_PER_STEP))

    def refused(self, began_in: int) -> None:
        """The source asked for fewer reads."""
        if began_in == self.round:
            self._reduced_at_s_per_byte = None
            self._is_healthy = True
            self._reduce(_REFUSED)

    def _judge(self) -> None:
        """A window of answers is full."""
        before, self._reduced_at_s_per_byte = self._reduced_at_s_per_byte, None
        if before is not None and self._inflation.recent_s_per_byte > _HELPED_BELOW * before:
            self._inflation.accept()
            self._exact = min(float(self._most), self._exact / _INFLATED)
        if self._inflation.ratio > _INFLATED_ABOVE and self._exact > self._least:
            self._reduced_at_s_per_byte = self._inflation.recent_s_per_byte
            self._reduce(_INFLATED)
        self._is_healthy = self._inflation.ratio < _HEALTHY_BELOW

    def _reduce(self, factor: float) -> None:
        self._exact = max(float(self._least), self._exact * factor)
        self._inflation.restart()
        self.round += 1


class _Inflation:
    """Recent times per byte against the best: medians of windows, or one lucky read would make all others slow."""

    def __init__(self) -> None:
        self._window: list[float] = []
        self._largest_bytes = 0
        self._best_s_per_byte = 0.0
        self.recent_s_per_byte = 0.0

    @property
    def ratio(self) -> float:
        return self.recent_s_per_byte / self._best_s_per_byte if self._best_s_per_byte else 1.0

    def add(self, nbytes: int, seconds: float) -> bool:
        """Whether a window is full with this; small reads are not comparable and are left out."""
        self._largest_bytes = max(self._largest_bytes, nbytes)
        if 2 * nbytes < self._largest_bytes:
            return False
        self._window.append(seconds / nbytes)
        if len(self._window) < _WINDOW:
            return False
        self.recent_s_per_byte = sorted(self._window)[_WINDOW // 2]
        self._best_s_per_byte = min(self._best_s_per_byte or self.recent_s_per_byte, self.recent_s_per_byte)
        self.restart()
        return True

    def accept(self) -> None:
        """What is recent is the best that can be had."""
        self._best_s_per_byte = self.recent_s_per_byte

    def restart(self) -> None:
        self._window.clear()
