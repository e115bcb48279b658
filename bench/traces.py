"""What traces cost a cold start: `python -m bench.traces [--runs 5]`, on the demo model from its folder.

Ready and the first token, counted from exec, without traces, with a collector that takes them, with a port that nobody
listens on, and with one that never answers. Every round runs each once, in another order, so that a noisy machine is noisy
for all of them. Ends with one JSON line: medians, and each one's ratio to the median without traces.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.coldstream import serving
from tests.collector import black_hole, sink
from tools.demo_model import ensure_demo_model
from tools.ports import free_port

Run = dict[str, float]

_FIGURES = {"ready_s": "ready_time", "first_answer_s": "first_answer_time"}


def main() -> None:
    """Measure, print a line per case, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    folder = ensure_demo_model()
    with ExitStack() as stack:
        _, port = stack.enter_context(sink())
        endpoints = {
            "none": "",
            "collector": f"http://127.0.0.1:{port}",
            "nobody": f"http://127.0.0.1:{free_port()}",
            "black-hole": stack.enter_context(black_hole()),
        }
        measured: dict[str, list[Run]] = {case: [] for case in endpoints}
        for _ in range(runs):
            for case in random.sample(list(endpoints), len(endpoints)):
                measured[case].append(_once(folder, endpoints[case]))
    print(json.dumps({"benchmark": "traces", "runs": runs, "figures": _figures(measured)}))


def _once(folder: Path, endpoint: str) -> Run:
    """One cold start; the first token is asked for the moment the server is ready."""
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    with (
        tempfile.TemporaryDirectory() as scratch,
        serving(str(folder), log_path=Path(scratch) / "log", environ=environ if endpoint else {}) as server,
    ):
        server.wait_ready()
        server.complete("Hello", max_tokens=1)
        milestones = server.client.get("/startupz").json()["milestones"]
    return {figure: milestones[milestone] for figure, milestone in _FIGURES.items()}


def _figures(measured: dict[str, list[Run]]) -> dict[str, dict[str, object]]:
    figures: dict[str, dict[str, object]] = {}
    for figure in _FIGURES:
        values = {case: [run[figure] for run in runs] for case, runs in measured.items()}
        without = statistics.median(values["none"])
        for case, taken in values.items():
            median = statistics.median(taken)
            spread = {"median": round(median, 3), "min": min(taken), "max": max(taken)}
            figures.setdefault(case, {})[figure] = {**spread, "ratio": round(median / without, 3)}
            print(f"{case:>12} {figure:>14} {median:7.3f} ({min(taken):.3f}-{max(taken):.3f}) x{median / without:.3f}")
    return figures


if __name__ == "__main__":
    main()
