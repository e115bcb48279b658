"""Measurements as a table and as one JSON line. Takes what `bench.gpu.results` holds; knows no process."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bench.gpu.results import Results

DISCIPLINE = (
    "each start is a new process, timed from its exec (the kernel's start time) to its first token; page cache and "
    "bytecode warm (everyone's libraries imported, ours and the streamer started once, unrecorded, before the first round); one contender "
    "at a time, the order reversed every other round; 1 s and the GPU's memory back at its baseline between starts; "
    "object store, contenders and benchmark share one machine"
)


def statistics_of(values: Sequence[float]) -> dict[str, float]:
    """Median, extremes, mean and standard deviation (0 for a single value), rounded to the millisecond."""
    figures = {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "mean": statistics.mean(values),
        "stdev": statistics.stdev(values) if len(values) > 1 else 0.0,
    }
    return {name: round(value, 3) for name, value in figures.items()} | {"n": len(values)}


def figures(results: Results, beside: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Every measured contender's statistics, the phases of its median start, its memory, and how many times ours it takes.

    Args:
        results: What was measured.
        beside: Every contender, and which of ours it is compared with.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name in beside:
        measurements = results.of(name)
        if measurements:
            rows[name] = statistics_of([measurement["seconds"] for measurement in measurements])
            rows[name]["phases"] = median_start(measurements)["phases"]
            rows[name] |= {key: _most(measurements, key) for key in ("peak_rss_mib", "gpu_mib")}
    for name, row in rows.items():
        ours = rows.get(beside[name])
        row["times_ours"] = round(row["median"] / ours["median"], 2) if ours else None
    return rows


def median_start(measurements: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The start in the middle (the faster of two)."""
    return sorted(measurements, key=lambda measurement: float(measurement["seconds"]))[(len(measurements) - 1) // 2]


def _most(measurements: Sequence[dict[str, Any]], key: str) -> float | None:
    return max((value for measurement in measurements if (value := measurement.get(key)) is not None), default=None)


def wrong_tokens(results: Results, expected: int) -> list[str]:
    """One line for every start that answered another token than the planted one."""
    return [
        f"{measurement['contender']}, round {measurement['round']}: token {measurement['token_id']}, not {expected}"
        for measurement in results.measurements
        if "token_id" in measurement and measurement["token_id"] != expected
    ]


def table_lines(rows: dict[str, dict[str, Any]]) -> list[str]:
    """One line per contender, then the phases of each one's median start."""
    columns = ("median", "min", "max", "mean", "stdev")
    lines = [
        f"{'seconds since exec':46}" + "".join(f"{name:>8}" for name in columns) + "   n   x ours  GPU MiB  RSS MiB"
    ]
    for name, row in rows.items():
        ratio = f"{row['times_ours']:8.2f}" if row["times_ours"] else f"{'':8}"
        memory = "".join(f"{row[key]:9.0f}" if row[key] else f"{'':9}" for key in ("gpu_mib", "peak_rss_mib"))
        lines.append(f"{name:46}" + "".join(f"{row[key]:8.3f}" for key in columns) + f"{row['n']:4} {ratio}{memory}")
    for name, row in rows.items():
        spans = ", ".join(f"{p['name']} {p['start_s']:.2f}-{p['end_s']:.2f}" for p in row["phases"])
        lines.append(f"{name}: {spans}")
    return lines
