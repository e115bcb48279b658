"""/livez at 100 Hz through a whole start and then under load: `python -m bench.probes [MODEL] [--streams 1 8 32] [--rounds 3]`.

Each round starts a server, probes it from exec until it is ready (imports, tokenizer, weights, warm-up), then idle and while
so many streams at once are answered, whose clients are another process. A connection per probe, as a kubelet makes them; the
probes cost a tenth of a small machine themselves. Ends with one JSON line: the worst of all rounds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.load import Endpoint, Shape, closed_loop
from bench.probing import Prober, get_status
from streaming.clock import boottime_s, exec_time_s
from tests.coldstream import serving, wait_for
from tools.demo_model import ensure_demo_model

Figures = dict[str, float]

_IDLE_S = 2.0
_START_S = 300
_COLUMNS = ("first_200_s", "ready_s", "p50_ms", "p99_ms", "max_ms", "probes")


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("model", nargs="?", type=Path, help="a checkpoint folder; the demo model if there is none")
    add("--streams", nargs="*", type=int, default=[1, 8, 32])
    add("--requests-per-stream", type=int, default=2)
    add("--shape", type=int, nargs=2, default=(128, 64), metavar=("IN", "OUT"))
    add("--rounds", type=int, default=3)
    add("--serve-flag", action="append", default=[], help="for coldstream serve; may be repeated")
    return parser.parse_args(arguments)


def main() -> None:
    """Measure every phase of every round and print the table."""
    arguments = parse_arguments(sys.argv[1:])
    folder = arguments.model or ensure_demo_model()
    measured: dict[str, list[Figures]] = {}
    for number in range(arguments.rounds):
        for phase, figures in _round(folder, arguments):
            measured.setdefault(phase, []).append({key: round(value, 2) for key, value in figures.items()})
            print(f"round {number}: {phase}: {measured[phase][-1]}", flush=True)
    worst = {phase: {key: max(each[key] for each in rounds) for key in rounds[0]} for phase, rounds in measured.items()}
    print("\n".join(["", *_table(worst)]))
    print(json.dumps({"benchmark": "probes", "model": folder.name, "rounds": arguments.rounds, "worst": worst}))


def _round(folder: Path, arguments: argparse.Namespace) -> Iterator[tuple[str, Figures]]:
    """One server's life: each phase's name and figures."""
    input_tokens, output_tokens = arguments.shape
    shape = Shape(input_tokens, output_tokens, json.loads((folder / "config.json").read_text())["vocab_size"])
    with (
        tempfile.TemporaryDirectory() as scratch,
        serving(str(folder), *arguments.serve_flag, log_path=Path(scratch) / "log") as server,
    ):
        port = int(server.url.rpartition(":")[2])
        yield "start", _started(server.pid, port)
        yield "idle", _probed(port, lambda: time.sleep(_IDLE_S))
        for streams in arguments.streams:
            requests = streams * arguments.requests_per_stream

            def load(streams: int = streams, requests: int = requests) -> None:
                _load(Endpoint(server.url, "m"), shape, streams, requests)

            yield f"{streams} streams", _probed(port, load)


def _started(pid: int, port: int) -> Figures:
    """Probes from before there is a listener until /health says 200."""
    exec_s = exec_time_s(pid)
    with Prober(port, "/livez") as livez:
        wait_for(lambda: get_status(port, "/health") == 200, _START_S)
        ready_s = boottime_s()
    assert livez.first_200_s is not None
    return {"first_200_s": livez.first_200_s - exec_s, "ready_s": ready_s - exec_s, **livez.figures_ms()}


def _probed(port: int, meanwhile: Callable[[], None]) -> Figures:
    with Prober(port, "/livez") as livez:
        meanwhile()
    return livez.figures_ms()


def _load(endpoint: Endpoint, shape: Shape, streams: int, requests: int) -> None:
    """A closed loop in a process of its own: what its clients compute is not on the prober's account."""
    numbers = {"concurrency": streams, "requests": requests}
    process = multiprocessing.get_context("spawn").Process(target=closed_loop, args=(endpoint, shape), kwargs=numbers)
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the load of {streams} streams failed: its own message is above")


def _table(rows: dict[str, Figures]) -> list[str]:
    lines = ["| worst of all rounds | " + " | ".join(_COLUMNS) + " |", "|---" * (len(_COLUMNS) + 1) + "|"]
    for phase, row in rows.items():
        cells = (f"{row[column]:g}" if column in row else "" for column in _COLUMNS)
        lines.append(f"| {phase} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
