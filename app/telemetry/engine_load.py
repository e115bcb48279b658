"""What the engine last said of its load, over as many engines as there were.

Takes the engine's reports; knows no process.
"""

from __future__ import annotations

from app.messages import EngineStats


class EngineLoad:
    """The latest report, and counters that no restart sets back."""

    def __init__(self) -> None:
        self.stats: EngineStats | None = None
        self._preemptions_before = 0

    @property
    def preemptions(self) -> int:
        """Of all engines."""
        return self._preemptions_before + (self.stats.preemptions if self.stats else 0)

    def update(self, stats: EngineStats) -> None:
        """The engine's newest report."""
        self.stats = stats

    def lost(self) -> None:
        """The engine is gone: nothing runs, and its counters go on in the next one's."""
        self._preemptions_before = self.preemptions
        self.stats = None
