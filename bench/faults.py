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
    """One weather: seconds of every run, and requests of the last."""

    seconds: list[float]
    requests: int


def weathers(seed: int) -> dict[str, Plan]:
    """Plans by name; what goes wrong is a share of the ranges, each the first time that it is asked for."""
    return {
        "clean": Plan((_LATE,)),
        "5 % stalled": Plan((Rule(Stall(1000), share=0.05, weights_only=True, seed=seed), _LATE)),
        "20 % 503": Plan((Rule(Refusal(503), share=0.2, weights_only=True, seed=seed), _LATE)),
    }


def measure(folder: Path, name: str, runs: int) -> Measured:
    """Load so often, each time with other ranges going wrong.

    Raises:
        SystemExit: A load failed.
    """
    seconds = []
    for run in range(runs):
        with FaultServer(folder, weathers(run)[name].schedule()) as server:
            outcome = load_in_process(server.url, SourceOptions(), _PIPELINE)
        if outcome.error is not None:
            raise SystemExit(f"{name}: {outcome.error.message}")
        seconds.append(outcome.seconds)
    return Measured(seconds, len(server.requests))


def main() -> None:
    """Measure every weather in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--shape", default="small")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_checkpoint(folder, arguments.shape, shards=4)
        found = {name: measure(folder, name, arguments.runs) for name in weathers(0)}
    medians = {name: statistics.median(each.seconds) for name, each in found.items()}
    print(f"{'source':<14} {'median s':>9} {'x clean':>8} {'requests':>9}")
    for name, each in found.items():
        print(f"{name:<14} {medians[name]:9.2f} {medians[name] / medians['clean']:8.2f} {each.requests:9}")
    ratios = {name: round(median / medians["clean"], 2) for name, median in medians.items()}
    print(json.dumps({"runs": arguments.runs, "seconds": medians, "ratios": ratios}))


if __name__ == "__main__":
    main()
