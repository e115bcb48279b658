"""How far a load has come: bytes landed, throughput, time left.

Takes byte counts with their clock; knows nothing of where they come from. Seconds of any one monotonic
clock.
"""

from __future__ import annotations

from collections import deque

_WINDOW_S = 5.0


class Progress:
    """Landed bytes against a total, with a moving average over the last five seconds."""

    def __init__(self, total_bytes: int, *, start_s: float, landed_bytes: int = 0):
        self.total_bytes = total_bytes
        self.landed_bytes = landed_bytes
        self._marks: deque[tuple[float, int]] = deque([(start_s, landed_bytes)])

    def add(self, nbytes: int, now_s: float) -> None:
        """Count `nbytes` more as landed at `now_s`."""
        self.landed_bytes += nbytes
        self._marks.append((now_s, self.landed_bytes))
        while len(self._marks) > 2 and self._marks[0][0] < now_s - _WINDOW_S:
            self._marks.popleft()

    def throughput_bytes_per_s(self, now_s: float) -> float:
        """Average over the window that ends now, so that a stall shows as a falling rate."""
        then_s, then_bytes = self._marks[0]
        elapsed_s = now_s - then_s
        return (self.landed_bytes - then_bytes) / elapsed_s if elapsed_s > 0 else 0.0

    def eta_s(self, now_s: float) -> float | None:
        """Seconds until the last byte at the present rate; None while nothing moves."""
        left_bytes = self.total_bytes - self.landed_bytes
        if left_bytes <= 0:
            return 0.0
        rate = self.throughput_bytes_per_s(now_s)
        return left_bytes / rate if rate > 0 else None
