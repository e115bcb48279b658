"""The startup ledger as text: one bar per phase, then the milestones.

Takes what `/startupz` answers, gives lines. Knows no HTTP.
"""

from __future__ import annotations

from typing import Any

_BAR_WIDTH = 40


def ledger_lines(ledger: dict[str, Any]) -> list[str]:
    """The ledger in seconds since exec, in the order in which it comes."""
    phases = [(phase["name"], phase["start_s"], phase["end_s"]) for phase in ledger["phases"]]
    milestones: dict[str, float] = ledger["milestones"]
    width = max((len(name) for name in [*milestones, *(name for name, _, _ in phases)]), default=0)
    total_s = max([*(end_s for _, _, end_s in phases), *milestones.values()], default=0.0)
    return [
        f"  {'phase':<{width}}    start      end  seconds since exec",
        *(
            f"  {name:<{width}}  {start_s:7.3f}  {end_s:7.3f}  {_bar(start_s, end_s, total_s)}"
            for name, start_s, end_s in phases
        ),
        "",
        f"  {'milestone':<{width}}                at",
        *(f"  {name:<{width}}           {at_s:7.3f}  {_bar(at_s, at_s, total_s)}" for name, at_s in milestones.items()),
    ]


def _bar(start_s: float, end_s: float, total_s: float) -> str:
    """A bar on a scale of [0, total_s]: at least one character wide, never past the end."""
    scale = _BAR_WIDTH / total_s if total_s else 0.0
    start = min(int(start_s * scale), _BAR_WIDTH - 1)
    return " " * start + "#" * max(1, round(end_s * scale) - start)
