"""Landings as tables in Markdown and as figures for one JSON line. Takes what `bench.gpu.results` holds."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from typing import Any

from bench.gpu.landing_points import DEFAULTS, MEMORY, OBSTORE, OURS, PLAIN, RUNAI, TLS, point_name
from bench.gpu.results import Results

DISCIPLINE = (
    "every load is a new process, timed from its exec (the kernel's start time); page cache and bytecode warm; one "
    "process at a time, the order reversed every other round; 1 s and the GPU's memory back at its baseline between "
    "loads; object store, loader and benchmark share one machine; GB are decimal; steady is from 10 to 90 % landed, "
    "transfer from the first byte asked for, whole from exec; CPU-s are the loading process's, imports included; median (min-max)"
)
_KEYS = ("planned_s", "seconds", "steady", "transfer", "whole", "cpu_s_per_gb", "peak_rss_mib")
_TITLES = (
    "exec to planned, s",
    "exec to landed, s",
    "steady, GB/s",
    "transfer, GB/s",
    "whole, GB/s",
    "CPU-s/GB",
    "peak RSS, MiB",
)
Rows = dict[str, dict[str, Any]]


def figures(results: Results) -> Rows:
    """Every point's median, extremes and count per figure, in the order in which points were first measured."""
    names = dict.fromkeys(measurement["contender"] for measurement in results.measurements)
    return {name: _figures_of(results.of(name)) for name in names}


def _figures_of(measurements: Sequence[dict[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"n": len(measurements), "bytes": measurements[0]["bytes"]}
    for key in _KEYS:
        values = [value for measurement in measurements if (value := measurement.get(key)) is not None]
        row[key] = [round(f(values), 3) for f in (statistics.median, min, max)] if values else None
    return row


def median(rows: Rows, name: str, key: str) -> float | None:
    """One figure's median; None where it was not measured."""
    found = rows.get(name, {}).get(key)
    return float(found[0]) if found else None


def matrix_lines(rows: Rows, transport: str, grid: Sequence[tuple[int, int]], key: str) -> list[str]:
    """Our loader's figure, lanes down and MiB per chunk across."""

    def cell(lanes: int, chunk_mib: int) -> str:
        return _spread(rows.get(point_name(OURS, transport, lanes, chunk_mib), {}).get(key))

    chunks = sorted({chunk_mib for _, chunk_mib in grid})
    return _table(
        [f"{transport}: lanes", *(f"{chunk_mib} MiB" for chunk_mib in chunks)],
        [[str(lanes), *(cell(lanes, each) for each in chunks)] for lanes in sorted({lanes for lanes, _ in grid})],
    )


def detail_lines(rows: Rows) -> list[str]:
    """Everything that was measured, a point a line."""
    body = [
        [name, *(_spread(row[key]) for key in _KEYS), str(row["n"])]
        for name, row in sorted(rows.items(), key=_by_number)
    ]
    return _table(["point", *_TITLES, "n"], body)


def _by_number(item: tuple[str, object]) -> list[tuple[int, str]]:
    """8 before 16."""
    return [(int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", item[0])]


def ratio_lines(found: dict[str, float]) -> list[str]:
    """A ratio a line."""
    return _table(["ratio", ""], [[name, f"{ratio:.2f}"] for name, ratio in found.items()])


def ratios(rows: Rows) -> dict[str, float]:
    """Ours over obstore alone, point by point; and our fastest over TLS over Run:ai's fastest."""
    found: dict[str, float] = {}
    for name in rows:
        for key in ("steady", "transfer"):
            ours = median(rows, name, key)
            ceiling = median(rows, name.replace(OURS, OBSTORE), key)
            if name.startswith(f"{OURS},") and ours and ceiling:
                found[f"{name} / {OBSTORE}, {key}"] = round(ours / ceiling, 3)
    for key in ("steady", "transfer", "whole"):
        ours, theirs = (_best(rows, f"{who}, {TLS},", key) for who in (OURS, RUNAI))
        if ours and theirs:
            found[f"{OURS}, {TLS}, best / {RUNAI}, best, {key}"] = round(ours / theirs, 3)
    return found


def _best(rows: Rows, prefix: str, key: str) -> float | None:
    return max((found for name in rows if name.startswith(prefix) and (found := median(rows, name, key))), default=None)


def evenness(results: Results, rate_gb_per_s: float) -> dict[str, dict[str, Any]]:
    """How evenly a fixed rate was held: each tenth's rate over it (the median of all loads), and the least of any load.

    The first tenth waits for the first byte, and what the last chunks' tenth shows is when they were reported:
    `least_inner` leaves both out.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(measurement["contender"] for measurement in results.measurements):
        loads = [
            measurement["tenths"] for measurement in results.of(name) if None not in measurement.get("tenths", [None])
        ]
        if loads:
            shares = [[rate / rate_gb_per_s for rate in load] for load in loads]
            found[name] = {
                "tenths": [round(statistics.median(tenth), 3) for tenth in zip(*shares, strict=True)],
                "least": round(min(map(min, shares)), 3),
                "least_inner": round(min(min(share[1:-1]) for share in shares), 3),
            }
    return found


def evenness_lines(even: dict[str, dict[str, Any]]) -> list[str]:
    """Rate over the fixed rate by tenth of the load."""
    header = ["rate / fixed rate, by tenth", *(str(number + 1) for number in range(10)), "least", "least of 2-9"]
    body = [
        [name, *(f"{share:.2f}" for share in row["tenths"]), f"{row['least']:.3f}", f"{row['least_inner']:.3f}"]
        for name, row in even.items()
    ]
    return _table(header, body)


def memory_peaks_mib(rows: Rows, shape: str) -> dict[str, float]:
    """The most that a loader with the default lanes and chunks had resident, by checkpoint."""
    prefix = f"{MEMORY}, "
    peaks = {name.removeprefix(prefix): _most(row) for name, row in rows.items() if name.startswith(prefix)}
    default = max(_most(rows.get(point_name(OURS, each, *DEFAULTS), {})) for each in (PLAIN, TLS))
    if default:
        peaks[shape] = max(default, peaks.get(shape, 0.0))
    return peaks


def _most(row: dict[str, Any]) -> float:
    return float(row["peak_rss_mib"][2]) if row.get("peak_rss_mib") else 0.0


def _spread(found: Sequence[float] | None) -> str:
    """Median (min-max), with as many digits as say something."""
    if not found:
        return ""
    digits = 0 if found[0] >= 100 else 1 if found[0] >= 10 else 2
    low, high = (f"{value:.{digits}f}" for value in found[1:])
    return f"{found[0]:.{digits}f} ({low}-{high})"


def _table(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (header, ["---", *["---:"] * (len(header) - 1)], *body)]
