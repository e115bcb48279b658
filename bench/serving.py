"""Throughput and latency under load, through HTTP: `python -m bench.serving [MODEL] [--concurrency 1 8] [--shapes 512x128]`.

Closed loops at several concurrencies, open ones at several rates, and beside them in the same run transformers with
the same weights. Every point is measured `--rounds` times in turn, so that a noisy machine is noisy for all.
Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bench.load import Endpoint, Shape, closed_loop, open_loop
from tests.coldstream import serving
from tools.demo_model import ensure_demo_model

Figures = dict[str, float]
Point = tuple[str, Callable[[], Figures]]

_COLUMNS = ("output_tokens_per_s", "ttft_p50_ms", "ttft_p99_ms", "gap_p50_ms", "gap_p95_ms", "gap_p99_ms")


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("model", nargs="?", type=Path, help="a checkpoint folder; the demo model if there is none")
    add("--shapes", nargs="+", type=_shape, default=[(512, 128), (128, 512)], metavar="INxOUT")
    add("--concurrency", nargs="*", type=int, default=[1, 8, 32, 64, 128])
    add("--rates", nargs="*", type=float, default=[], help="requests per second of open loops")
    add("--requests-per-client", type=int, default=3, help="at least eight requests are made")
    add("--rivals", nargs="*", choices=("generate", "generate_batch"), default=["generate"])
    add("--rounds", type=int, default=3)
    add("--serve-flag", action="append", default=[], help="for coldstream serve; may be repeated")
    return parser.parse_args(arguments)


def _shape(text: str) -> tuple[int, int]:
    input_tokens, output_tokens = text.split("x")
    return int(input_tokens), int(output_tokens)


def main() -> None:
    """Measure every point and print the table."""
    arguments = parse_arguments(sys.argv[1:])
    folder = arguments.model or ensure_demo_model()
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    shapes = [Shape(given, asked, vocab_size) for given, asked in arguments.shapes]
    measured: dict[str, list[Figures]] = {}
    for number in range(arguments.rounds):
        for who in ("coldstream", *arguments.rivals):
            for name, run in _points(who, arguments, folder, shapes):
                measured.setdefault(name, []).append(run())
                print(f"round {number}: {name}: {measured[name][-1]}", flush=True)
    rows = {name: _spread(each) for name, each in measured.items()}
    print("\n".join(["", *_table(rows)]))
    print(json.dumps({"benchmark": "serving", "model": folder.name, "rounds": arguments.rounds, "figures": rows}))


def _points(who: str, arguments: argparse.Namespace, folder: Path, shapes: list[Shape]) -> Iterator[Point]:
    if who == "coldstream":
        with _served(folder, arguments.serve_flag) as endpoint:
            yield from _ours(arguments, endpoint, shapes)
    else:
        yield from _rival(who, arguments, folder, shapes)


def _ours(arguments: argparse.Namespace, endpoint: Endpoint, shapes: list[Shape]) -> Iterator[Point]:
    for shape in shapes:
        size = f"{shape.input_tokens} in, {shape.output_tokens} out"
        for clients in arguments.concurrency:
            requests = _requests(arguments, clients)
            yield (
                f"coldstream, {size}, {clients} at once",
                partial(closed_loop, endpoint, shape, concurrency=clients, requests=requests),
            )
        for rate in arguments.rates:
            requests = _requests(arguments, 8)
            yield (
                f"coldstream, {size}, {rate:g} per second",
                partial(open_loop, endpoint, shape, requests_per_s=rate, requests=requests),
            )


def _rival(mode: str, arguments: argparse.Namespace, folder: Path, shapes: list[Shape]) -> Iterator[Point]:
    for shape in shapes:
        for clients in arguments.concurrency:
            numbers = (shape.input_tokens, shape.output_tokens, clients, _requests(arguments, clients))
            yield (
                f"transformers {mode}, {numbers[0]} in, {numbers[1]} out, {clients} at once",
                partial(_generate, folder, numbers, mode),
            )


def _requests(arguments: argparse.Namespace, clients: int) -> int:
    return max(8, clients * int(arguments.requests_per_client))


@contextmanager
def _served(folder: Path, flags: list[str]) -> Iterator[Endpoint]:
    with (
        tempfile.TemporaryDirectory() as scratch,
        serving(str(folder), *flags, log_path=Path(scratch) / "log") as server,
    ):
        server.wait_ready(300)
        yield Endpoint(server.url, "m")


def _generate(folder: Path, numbers: tuple[int, ...], mode: str) -> Figures:
    command = [sys.executable, "-m", "bench.rival_generate", str(folder), *map(str, numbers), mode]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"transformers {mode} failed: {done.stderr[-500:]}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def _spread(rounds: list[Figures]) -> dict[str, Any]:
    """Median, least and most of every figure."""
    return {
        key: [round(f([each[key] for each in rounds]), 2) for f in (statistics.median, min, max)] for key in rounds[0]
    }


def _table(rows: dict[str, dict[str, Any]]) -> list[str]:
    lines = ["| median (min to max) | " + " | ".join(_COLUMNS) + " |", "|---" * (len(_COLUMNS) + 1) + "|"]
    for name, row in rows.items():
        cells = ("{:g} ({:g} to {:g})".format(*row[column]) if column in row else "" for column in _COLUMNS)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
