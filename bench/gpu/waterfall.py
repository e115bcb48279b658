"""Where the seconds go: a median start of ours, phase by phase, above the rivals'. Takes figures, draws a PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from bench.gpu.contenders import OURS_HTTP, OURS_HTTPS

_OURS = "#2a7ab9"
_OUR_PHASE = "#8fbfe0"
_OTHER = "#c7c7c7"
_COLOURS = {
    "import torch": "#a9b4bf",
    "import transformers": "#8a97a5",
    "download": "#e9c46a",
    "load": "#e08e45",
    "first token": "#8c4a6b",
}
# Shorter phases of ours have no bar of their own.
_MIN_PHASE_S = 0.02


class Bar(NamedTuple):
    """One stretch of time."""

    name: str
    start_s: float
    end_s: float
    colour: str


def draw(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """Ours over HTTP has a lane for every phase (they overlap); everyone else has all phases in one lane."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    lanes = lanes_of(rows)
    total_s = max(bar.end_s for _, bars in lanes for bar in bars)
    figure, axes = plt.subplots(figsize=(10, 0.7 + 0.24 * len(lanes)), layout="constrained")
    for height, (label, bars) in enumerate(lanes):
        for bar in bars:
            axes.barh(height, bar.end_s - bar.start_s, left=bar.start_s, color=bar.colour, height=0.75)
            if bar.end_s - bar.start_s > 0.1 * total_s:
                axes.text((bar.start_s + bar.end_s) / 2, height, bar.name, ha="center", va="center", fontsize=6)
        if label in rows:
            axes.text(bars[-1].end_s + 0.005 * total_s, height, f"{bars[-1].end_s:.2f} s", va="center", fontsize=7)
    axes.set_yticks(range(len(lanes)), [label for label, _ in lanes], fontsize=7)
    axes.set_xlim(0, total_s * 1.07)
    axes.invert_yaxis()
    axes.set_xlabel("seconds since exec, the median start of each")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def lanes_of(rows: dict[str, dict[str, Any]]) -> list[tuple[str, list[Bar]]]:
    """Lanes from top to bottom, the soonest contender first; our phases follow our lane, indented."""
    lanes: list[tuple[str, list[Bar]]] = []
    for name in sorted(rows, key=lambda name: float(rows[name]["median"])):
        phases = rows[name]["phases"]
        if name in (OURS_HTTP, OURS_HTTPS):
            lanes.append((name, [Bar("first token", 0.0, rows[name]["median"], _OURS)]))
        else:
            lanes.append((name, [_bar(phase, _COLOURS.get(phase["name"], _OTHER)) for phase in phases]))
        if name == OURS_HTTP:
            seen = [phase for phase in phases if phase["end_s"] - phase["start_s"] >= _MIN_PHASE_S]
            lanes += [(f"{phase['name']} ·", [_bar(phase, _OUR_PHASE)]) for phase in seen]
    return lanes


def _bar(phase: dict[str, Any], colour: str) -> Bar:
    return Bar(phase["name"], phase["start_s"], phase["end_s"], colour)
