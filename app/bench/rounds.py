"""Rounds of cold starts, strategy after strategy, and what is printed of them.

Takes the parsed command, writes progress to standard error, the table and one JSON line to standard output.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from app.bench.server import serving
from app.bench.table import Run, columns, figures, gains_pct, table, verdict
from app.settings import Command, Settings


def bench(command: Command, environ: Mapping[str, str]) -> int:
    """Measure, print, and give the exit code.

    Raises:
        ServerFailed: A server that was to be measured.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # through the `with` blocks
    strategies: tuple[str, ...] = command.options["--strategy"]
    rounds: int = command.options["--runs"]
    runs: dict[str, list[Run]] = {strategy: [] for strategy in strategies}
    for number, strategy in schedule(strategies, rounds):
        run = _measure(command, strategy, environ)
        runs[strategy].append(run)
        _say(f"run {number} of {rounds}, {strategy}: first answer {run['first_answer_s']:.2f} s after exec")
    _print(command.settings, runs)
    return 0


def schedule(strategies: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Every strategy once a round, in another order each time, so that none always profits from the last one."""
    for number in range(rounds):
        start = number % len(strategies)
        yield from ((number + 1, strategy) for strategy in (*strategies[start:], *strategies[:start]))


def _measure(command: Command, strategy: str, environ: Mapping[str, str]) -> Run:
    settings = command.settings
    question = {
        "model": settings.model.served_model_names[0],
        "prompt": command.options["--prompt"],
        "max_tokens": 1,
        "temperature": 0,
    }
    words = (*command.serve_words, f"--load-strategy={strategy}")
    with serving(words, environ) as server:
        server.wait_ready()
        server.ask("POST", "/v1/completions", question)
        return columns(server.ask("GET", "/startupz")["milestones"])


def _print(settings: Settings, runs: dict[str, list[Run]]) -> None:
    found = figures(runs)
    report: dict[str, Any] = {
        "benchmark": "coldstream bench",
        "uri": settings.model.uri,
        "device": settings.device.kind,
        "runs": runs,
        "figures": found,
        "gain_pct": gains_pct(found),
    }
    lines = (*table(found), "seconds: median (minimum-maximum)", verdict(found), json.dumps(report))
    sys.stdout.write("\n".join(lines) + "\n")


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
