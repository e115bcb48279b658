"""Milestones to columns, columns to medians, gains and a verdict. Pure arithmetic and text.

Takes the milestones that `/startupz` shows (seconds since exec), by strategy and run. Knows no server.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from app.settings.bench import COLUMNS
from app.telemetry.names import FIRST_ANSWER, SPANS

Run = dict[str, float]
Spread = dict[str, float]
Figures = dict[str, dict[str, Spread]]

# What a cluster's autoscaler takes to look again.
_CYCLE_S = (30, 60)
_CELL_WIDTH = 22


def columns(milestones: Mapping[str, float]) -> Run:
    """One run: its milestones, and what the table's columns are made of."""
    spans = {name: round(milestones[end] - milestones[start], 3) for name, (start, end) in SPANS.items()}
    return {**milestones, **spans, "first_answer_s": milestones[FIRST_ANSWER]}


def figures(runs: Mapping[str, Sequence[Run]]) -> Figures:
    """Median, minimum and maximum of every column, by strategy."""
    return {
        strategy: {column: _spread([run[column] for run in rows]) for column in COLUMNS}
        for strategy, rows in runs.items()
    }


def _spread(values: Sequence[float]) -> Spread:
    return {"median": round(statistics.median(values), 3), "min": min(values), "max": max(values)}


def gains_pct(found: Figures) -> dict[str, float]:
    """By how much the first strategy's median first answer comes sooner than each other's, in percent of the other's."""
    first, *others = found
    ours_s = found[first]["first_answer_s"]["median"]
    theirs_s = {other: found[other]["first_answer_s"]["median"] for other in others}
    return {other: round((their_s - ours_s) / their_s * 100, 1) for other, their_s in theirs_s.items()}


def table(found: Figures) -> list[str]:
    """One row per strategy: median (minimum to maximum), and the gain of the first over it."""
    gains = gains_pct(found)
    width = max(map(len, ("strategy", *found)))
    header = f"{'strategy':<{width}}{''.join(f'{column:>{_CELL_WIDTH}}' for column in COLUMNS)}{'gain':>9}"
    return [
        header,
        *(
            f"{strategy:<{width}}{''.join(f'{_cell(row[column]):>{_CELL_WIDTH}}' for column in COLUMNS)}"
            f"{f'{gains[strategy]:.1f} %' if strategy in gains else '-':>9}"
            for strategy, row in found.items()
        ),
    ]


def _cell(spread: Spread) -> str:
    return f"{spread['median']:.2f} ({spread['min']:.2f}-{spread['max']:.2f})"


def verdict(found: Figures) -> str:
    """Whether the first strategy's slowest cold start fits one cycle of an autoscaler."""
    strategy, row = next(iter(found.items()))
    slowest_s = row["first_answer_s"]["max"]
    shortest_s, longest_s = _CYCLE_S
    if slowest_s <= shortest_s:
        says = f"fits one autoscaler cycle ({shortest_s}-{longest_s} s)"
    elif slowest_s <= longest_s:
        says = f"fits an autoscaler cycle of {longest_s} s, but not one of {shortest_s} s"
    else:
        says = f"does not fit one autoscaler cycle ({shortest_s}-{longest_s} s)"
    return f"the slowest cold start of {strategy}, {slowest_s:.2f} s, {says}"
