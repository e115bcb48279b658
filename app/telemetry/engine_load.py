"""What the engine last said of its load, over as many engines as there were.

Takes the engine's reports; knows no process.
"""

from __future__ import annotations

from app.messages import EngineStats


class EngineLoad:
    """The latest report, and counters that no restart sets back."""

    def __init__(self) -> None:
        self.stats: EngineStats | None = None
        self._before: dict[str, int] = {}

    def totals(self) -> dict[str, int]:
        """Of all engines: `preemptions`, and on a GPU `allocation_retries` and `allocation_failures`."""
        now = {} if self.stats is None else _counters(self.stats)
        return self._before | {name: self._before.get(name, 0) + count for name, count in now.items()}

    def update(self, stats: EngineStats) -> None:
        """The engine's newest report."""
        self.stats = stats

    def lost(self) -> None:
        """The engine is gone: nothing runs, and its counters go on in the next one's."""
        self._before = self.totals()
        self.stats = None


def _counters(stats: EngineStats) -> dict[str, int]:
    counts = {"preemptions": stats.preemptions}
    if (device := stats.device) is not None:
        counts |= {
            "allocation_retries": device.allocation_retries,
            "allocation_failures": device.allocation_failures,
        }
    return counts
