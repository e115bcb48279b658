"""The startup ledger: every phase with its start and end, in seconds since exec.

Takes marks in seconds of CLOCK_BOOTTIME from three processes; knows nothing of what the phases do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from app.telemetry.names import COLD_START_FROM_EXEC_S, FIRST_TOKEN, SPANS
from streaming.counters import FetchCounters
from streaming.messages import ShardTimes


class Ledger:
    """Phases and milestones of one startup, all relative to one exec time."""

    def __init__(self, exec_s: float):
        self.exec_s = exec_s
        self._phases: dict[str, tuple[float, float]] = {}
        self._milestones: dict[str, float] = {}
        self._fallbacks: list[dict[str, str]] = []
        self.fetched_bytes = 0
        self.counters = FetchCounters()
        self.shards: tuple[ShardTimes, ...] = ()
        self.device_used_bytes: dict[str, int] = {}
        self.restarts: Counter[str] = Counter(loader=0, engine=0)

    def phase(self, name: str, start_s: float, end_s: float) -> None:
        """Record a phase; a repeated name (a restarted process) keeps the latest."""
        self._phases[name] = (start_s - self.exec_s, end_s - self.exec_s)

    def milestone(self, name: str, at_s: float) -> bool:
        """Record the first time something happened; later ones are ignored, and told by False."""
        is_first = name not in self._milestones
        if is_first:
            self._milestones[name] = at_s - self.exec_s
        return is_first

    def fallback(self, what: str, reason: str) -> None:
        """Record what was done instead of what was wished for."""
        self._fallbacks.append({"what": what, "reason": reason})

    @property
    def phases(self) -> Mapping[str, tuple[float, float]]:
        """Start and end of every phase, in seconds since exec."""
        return self._phases

    @property
    def milestones(self) -> Mapping[str, float]:
        """What has happened, in seconds since exec."""
        return self._milestones

    def fallback_counts(self) -> Mapping[str, int]:
        """How often what was replaced."""
        return Counter(fallback["what"] for fallback in self._fallbacks)

    def durations(self) -> dict[str, float]:
        """The cold start's spans in seconds, as far as both of their milestones are known."""
        known = self._milestones
        spans = {
            name: known[end] - known[start] for name, (start, end) in SPANS.items() if start in known and end in known
        }
        return spans | ({COLD_START_FROM_EXEC_S: known[FIRST_TOKEN]} if FIRST_TOKEN in known else {})

    def as_dict(self) -> dict[str, object]:
        """The ledger as `/startupz` shows it, in order of time, rounded to the millisecond."""
        phases = sorted(self._phases.items(), key=lambda item: item[1])
        return {
            "phases": [
                {"name": name, "start_s": round(start, 3), "end_s": round(end, 3)} for name, (start, end) in phases
            ],
            "milestones": {
                name: round(at, 3) for name, at in sorted(self._milestones.items(), key=lambda item: item[1])
            },
            "durations": {name: round(value, 3) for name, value in self.durations().items()},
            "fallbacks": self._fallbacks,
        }

    def lines(self) -> list[str]:
        """The ledger for a log: one line per phase and milestone, in seconds since exec."""
        phases = sorted(self._phases.items(), key=lambda item: item[1])
        milestones = sorted(self._milestones.items(), key=lambda item: item[1])
        return [f"phase {name}: {start:.3f} s -> {end:.3f} s" for name, (start, end) in phases] + [
            f"milestone {name}: {at:.3f} s" for name, at in milestones
        ]
