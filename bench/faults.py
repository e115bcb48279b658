"""How much longer a load takes from a source that misbehaves: `python -m bench.faults`.

The source is the tests' server on this machine, each request 20 ms late, so that the ratios say what faults cost and not
how fast the machine copies. What is measured in turns is the fetch of the weights, not the loader's start; a load that fails has
none. What stalls does so for ever. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from pathlib import Path
from typing import NamedTuple

from streaming.options import PipelineOptions, SourceOptions
from streaming.timings import whole
from tests.faults.faults import Latency, Refusal, Stall
from tests.faults.schedules import Plan, Rule
from tests.faults.server import FaultServer
from tests.loader import load
from tools.random_checkpoint import write_checkpoint

_PIPELINE = PipelineOptions(lanes=16, chunk_bytes=1 << 20)
_LATE = Rule(Latency(0.02), attempts=None)


class Measured(NamedTuple):
    """One load: seconds from the first read of weights to the last byte, None if it failed, and requests."""

    seconds: float | None
    requests: int


def weathers(seed: int) -> dict[str, Plan]:
    """Plans by name; what goes wrong is a share of the ranges, each the first time that it is asked for."""
    return {
        "clean": Plan((_LATE,)),
        "5 % stalled": Plan((Rule(Stall(1000), share=0.05, weights_only=True, seed=seed), _LATE)),
        "20 % 503": Plan((Rule(Refusal(503), share=0.2, weights_only=True, seed=seed), _LATE)),
    }


def measure(folder: Path, plan: Plan, source: SourceOptions) -> Measured:
    """Load once."""
    with FaultServer(folder, plan.schedule()) as server:
        report = load(server.url, source=source, pipeline=_PIPELINE).report
    if report is None:
        return Measured(None, len(server.requests))
    start_s, end_s = whole(report.shards, "fetch")
    return Measured(end_s - start_s, len(server.requests))


def main() -> None:
    """Measure every weather in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--shape", default="small")
    parser.add_argument("--request-timeout", type=float, default=SourceOptions().request_timeout_s, metavar="SECONDS")
    arguments = parser.parse_args()
    source = SourceOptions(request_timeout_s=arguments.request_timeout)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_checkpoint(folder, arguments.shape, shards=4)
        measure(folder, weathers(0)["clean"], source)  # what only the first one pays
        found: dict[str, list[Measured]] = {name: [] for name in weathers(0)}
        for run in range(arguments.runs):
            for name, plan in weathers(run).items():
                found[name].append(measure(folder, plan, source))
    report(found)


def report(found: dict[str, list[Measured]]) -> None:
    """The table, and the JSON line."""
    seconds = {name: [each.seconds for each in runs if each.seconds is not None] for name, runs in found.items()}
    failed = {name: len(runs) - len(seconds[name]) for name, runs in found.items()}
    medians = {name: statistics.median(of_weather or [math.nan]) for name, of_weather in seconds.items()}
    ratios = {name: round(median / medians["clean"], 2) for name, median in medians.items()}
    print(f"{'source':<14} {'median s':>9} {'worst s':>8} {'x clean':>8} {'failed':>7} {'requests':>9}")
    for name, runs in found.items():
        worst_s = max(seconds[name], default=math.nan)
        requests = statistics.median(each.requests for each in runs)
        print(f"{name:<14} {medians[name]:9.2f} {worst_s:8.2f} {ratios[name]:8.2f} {failed[name]:7} {requests:9.0f}")
    print(json.dumps({"seconds": seconds, "ratios": ratios, "failed": failed}))


if __name__ == "__main__":
    main()
