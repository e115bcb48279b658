"""Cold start on a GPU, exec to first token, ours beside its rivals: `python -m bench.gpu.cold_start --results FILE.json`.

One object store on loopback serves one random checkpoint out of memory to everyone. Every measurement is
written to the file at once; a run that is out of its budget, or on a machine that went away, is gone on with
by the same command. Exit code 1 if anybody answered another token than the planted one, or failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.gpu import contenders, gpu, report, waterfall
from bench.gpu.contenders import Contender, Place, all_contenders
from bench.gpu.results import ParametersDiffer, Results
from bench.gpu.rounds import Budget, Runner
from tools.nginx import SYSTEM_CA_FILE, Nginx, nginx
from tools.random_checkpoint import PLANTED_FILE, SHAPES, SPARSE

_WARMED_UP = (contenders.OURS_HTTP, contenders.RUNAI)
_LIBRARIES = ("accelerate", "azure.storage.blob", "tensorizer", "transformers.models.llama.modeling_llama")


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="the file to go on with, made if missing")
    parser.add_argument("--shape", choices=sorted(SHAPES.keys() - {SPARSE}), default="8b")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slow-rounds", type=int, default=3)
    parser.add_argument("--budget-s", type=float, default=540.0, help="no start that would end after this")
    parser.add_argument("--only", action="append", default=[], help="part of a contender's name; may be repeated")
    parser.add_argument("--served-dir", type=Path, default=Path("/dev/shm/coldstream-bench"), help="in memory")
    parser.add_argument("--disk-dir", type=Path, default=Path("/var/tmp/coldstream-bench"), help="on a local disk")
    parser.add_argument(
        "--log-dir", type=Path, default=Path("/tmp/coldstream-bench-logs"), help="what contenders wrote"
    )
    parser.add_argument("--nginx-workers", type=int, default=max(2, (os.cpu_count() or 2) // 2))
    parser.add_argument("--runai-concurrency", type=int, default=32)
    parser.add_argument("--tensorizer-readers", type=int, default=8)
    parser.add_argument("--ours-flags", type=shlex.split, default=[], help="more flags of coldstream serve, one string")
    parser.add_argument("--trust-ca", action="store_true", help=f"add the server's CA to {SYSTEM_CA_FILE}")
    parser.add_argument("--no-warm-up", action="store_true", help="page cache and bytecode are warm already")
    parser.add_argument("--chart", type=Path, help="draw the waterfall here")
    parser.add_argument("--commit", default="", help="what was measured, where there is no git")
    return parser.parse_args(arguments)


def main() -> int:
    """Measure what is missing, then report everything in the file."""
    arguments = parse_arguments(sys.argv[1:])
    parameters = {
        key: getattr(arguments, key)
        for key in (
            "shape",
            "shards",
            "device",
            "nginx_workers",
            "runai_concurrency",
            "tensorizer_readers",
            "ours_flags",
        )
    }
    try:
        results = Results(arguments.results, parameters)
    except ParametersDiffer as error:
        print(f"cold_start: {error}", file=sys.stderr)
        return 2
    ensure_checkpoint(arguments)
    with tempfile.TemporaryDirectory(prefix="coldstream-bench-") as scratch:
        arguments.log_dir.mkdir(parents=True, exist_ok=True)
        with nginx(arguments.served_dir, workers=arguments.nginx_workers, state_dir=Path(scratch)) as server:
            if arguments.trust_ca:
                _trust(server)
            place = _place(arguments, server)
            complete, failures = measure(arguments, place, results)
    return conclude(arguments, place, results, complete, failures)


def ensure_checkpoint(arguments: argparse.Namespace) -> None:
    """Make the checkpoint where it is missing, in a process of its own: its GPU memory must be gone afterwards."""
    folder = arguments.served_dir / "models" / arguments.shape
    if not (folder / PLANTED_FILE).is_file():
        command = [sys.executable, "-m", "tools.random_checkpoint", str(folder), "--shape", arguments.shape]
        subprocess.run([*command, "--shards", str(arguments.shards)], check=True)


def _trust(server: Nginx) -> None:
    SYSTEM_CA_FILE.parent.mkdir(parents=True, exist_ok=True)
    with SYSTEM_CA_FILE.open("a") as file:
        file.write("\n" + server.ca_file.read_text())


def _place(arguments: argparse.Namespace, server: Nginx) -> Place:
    planted = json.loads((arguments.served_dir / "models" / arguments.shape / PLANTED_FILE).read_text())
    return Place(
        served_dir=arguments.served_dir,
        model=arguments.shape,
        disk_dir=arguments.disk_dir,
        log_dir=arguments.log_dir,
        server=server,
        device=arguments.device,
        prompt=tuple(planted["prompt_token_ids"]),
        planted_token_id=planted["token_id"],
        ours_flags=tuple(arguments.ours_flags),
        runai_concurrency=arguments.runai_concurrency,
        tensorizer_readers=arguments.tensorizer_readers,
    )


def measure(arguments: argparse.Namespace, place: Place, results: Results) -> tuple[bool, dict[str, str]]:
    """Make what is missing; whether all of it was made, and who failed."""
    everyone = {contender.name: contender for contender in all_contenders(place)}
    chosen = [contender for contender in everyone.values() if _is_chosen(contender, arguments.only)]
    rounds = {each.name: arguments.slow_rounds if each.is_slow else arguments.rounds for each in chosen}
    baseline_mib = gpu.used_mib() if arguments.device == "cuda" else None
    runner = Runner(everyone, results, Budget(arguments.budget_s, results), baseline_mib)
    if not arguments.no_warm_up and any(results.missing(rounds)):
        for library in _LIBRARIES:
            subprocess.run([sys.executable, "-c", f"import {library}"], capture_output=True, check=False)
        runner.warm_up([name for name in _WARMED_UP if name in rounds])
    complete = runner.run(rounds)
    return complete, runner.failures


def _is_chosen(contender: Contender, only: list[str]) -> bool:
    return not only or any(part.lower() in contender.name.lower() for part in only)


def conclude(
    arguments: argparse.Namespace, place: Place, results: Results, complete: bool, failures: dict[str, str]
) -> int:
    """Table, chart, the JSON line; the exit code."""
    rows = report.figures(results, {contender.name: contender.beside for contender in all_contenders(place)})
    print("\n" + "\n".join(report.table_lines(rows)) + f"\n{report.DISCIPLINE}")
    if arguments.chart and rows:
        waterfall.draw(rows, arguments.chart)
    wrong = report.wrong_tokens(results, place.planted_token_id)
    for line in [*(f"WRONG {line}" for line in wrong), *(f"FAILED {name}: {why}" for name, why in failures.items())]:
        print(line)
    summary = {
        "benchmark": "gpu_cold_start",
        "complete": complete and not failures,
        "hardware": hardware(arguments.device),
        "versions": {name: _version(name) for name in ("torch", "transformers", "runai-model-streamer", "tensorizer")},
        "commit": arguments.commit or _commit(),
        "parameters": results.parameters | {"rounds": arguments.rounds, "slow_rounds": arguments.slow_rounds},
        "discipline": report.DISCIPLINE,
        "figures": {name: {key: row[key] for key in row if key != "phases"} for name, row in rows.items()},
    }
    print(json.dumps(summary))
    return 1 if wrong or failures else 0


def hardware(device: str) -> dict[str, Any]:
    """What it was measured on."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found: dict[str, Any] = {"cores": os.cpu_count(), "memory_gib": round(pages / 2**30), "kernel": platform.release()}
    if device == "cuda":
        fields = ("name", "driver_version", "memory.total", "persistence_mode")
        found |= dict(zip(fields, gpu.query(*fields), strict=True))
    return found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _commit() -> str:
    try:
        return subprocess.check_output(
            ["git", "rev-parse", "--short", "HEAD"], text=True, stderr=subprocess.DEVNULL
        ).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    sys.exit(main())
