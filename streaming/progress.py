"""How far a load has come: bytes landed, throughput, time left.

Takes byte counts with their clock; knows nothing of where they come from. Seconds of any one monotonic
clock.
"""

from __future__ import annotations

from collections import deque

_WINDOW_S = 5.0
_WINDOW_ROUNDS = 4


class Progress:
    """Landed bytes against a total, with a moving average over the last five seconds or more.

    What has landed is told chunk by chunk. Rate and time left also count what is in flight: on average every lane is half
    through its chunk. Lanes tend to land in step, so the average also spans at least four chunks of every lane.

    Args:
        total_bytes: Of the whole load.
        start_s: When the first byte was asked for.
        round_bytes: A chunk for every lane.
    """

    def __init__(self, total_bytes: int, *, start_s: float, round_bytes: int = 0):
        self.total_bytes = total_bytes
        self.landed_bytes = 0
        self._round_bytes = round_bytes
        self._marks: deque[tuple[float, float]] = deque([(start_s, 0.0)])

    def add(self, nbytes: int, now_s: float) -> None:
        """Count `nbytes` more as landed at `now_s`."""
        self.landed_bytes += nbytes
        self._marks.append((now_s, self._fetched_bytes()))
        while self._begins_too_early(now_s):
            self._marks.popleft()

    def throughput_bytes_per_s(self, now_s: float) -> float:
        """Average over the window that ends now, so that a stall shows as a falling rate."""
        then_s, then_bytes = self._marks[0]
        elapsed_s = now_s - then_s
        return (self._fetched_bytes() - then_bytes) / elapsed_s if elapsed_s > 0 else 0.0

    def eta_s(self, now_s: float) -> float | None:
        """Seconds until the last byte at the present rate; None while nothing moves."""
        left_bytes = self.total_bytes - self._fetched_bytes()
        if left_bytes <= 0:
            return 0.0
        rate = self.throughput_bytes_per_s(now_s)
        return left_bytes / rate if rate > 0 else None

    def _fetched_bytes(self) -> float:
        """What has landed, and half of what can be in flight; nothing is known of it before the first chunk."""
        if self.landed_bytes == 0:
            return 0.0
        return self.landed_bytes + min(self._round_bytes, self.total_bytes - self.landed_bytes) / 2

    def _begins_too_early(self, now_s: float) -> bool:
        """Whether the window would still be long enough without its first mark."""
        if len(self._marks) <= 2:
            return False
        second_s, second_bytes = self._marks[1]
        return second_s < now_s - _WINDOW_S and self._marks[-1][1] - second_bytes >= _WINDOW_ROUNDS * self._round_bytes
