"""How much longer a load takes from a source that misbehaves: `python -m bench.faults`.

The source is the tests' server on this machine, each request 20 ms late, so that the ratios say what faults cost and not
how fast the machine copies. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import NamedTuple

from streaming.options import PipelineOptions, SourceOptions
from tests.faults.faults import Latency, Refusal, Stall
from tests.faults.loading import load_in_process
from tests.faults.schedules import Plan, Rule
from tests.faults.server import FaultServer
from tools.random_checkpoint import write_checkpoint

_PIPELINE = PipelineOptions(lanes=16, chunk_bytes=1 << 20)
_LATE = Rule(Latency(0.02), attempts=None)


class Measured(NamedTuple):
    """One weather: seconds of every run, how many of them failed, and requests of the last."""

    seconds: list[float]
    failed: int
    requests: int


def weathers(seed: int) -> dict[str, Plan]:
    """Plans by name; what goes wrong is a share of the ranges, each the first time that it is asked for."""
    return {
        "clean": Plan((_LATE,)),
        "5 % stalled": Plan((Rule(Stall(1000), share=0.05, weights_only=True, seed=seed), _LATE)),
        "20 % 503": Plan((Rule(Refusal(503), share=0.2, weights_only=True, seed=seed), _LATE)),
    }


def measure(folder: Path, name: str, runs: int, source: SourceOptions) -> Measured:
    """Load so often, each time with other ranges going wrong; a load that fails counts until it did."""
    outcomes = []
    for run in range(runs):
        with FaultServer(folder, weathers(run)[name].schedule()) as server:
            outcomes.append(load_in_process(server.url, source, _PIPELINE))
    failed = sum(outcome.error is not None for outcome in outcomes)
    return Measured([outcome.seconds for outcome in outcomes], failed, len(server.requests))


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
        measure(folder, "clean", 1, source)  # what only the first one pays
        found = {name: measure(folder, name, arguments.runs, source) for name in weathers(0)}
    medians = {name: statistics.median(each.seconds) for name, each in found.items()}
    print(f"{'source':<14} {'median s':>9} {'x clean':>8} {'failed':>7} {'requests':>9}")
    for name, each in found.items():
        print(
            f"{name:<14} {medians[name]:9.2f} {medians[name] / medians['clean']:8.2f} {each.failed:7} {each.requests:9}"
        )
    ratios = {name: round(median / medians["clean"], 2) for name, median in medians.items()}
    failed = {name: each.failed for name, each in found.items()}
    print(json.dumps({"runs": arguments.runs, "seconds": medians, "ratios": ratios, "failed": failed}))


if __name__ == "__main__":
    main()
