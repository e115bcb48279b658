"""How fast weights land: `python -m bench.gpu.landing --results FILE.json --budget-s 300`.

Our loader over lanes, chunk sizes and transports; beside it Run:ai's Model Streamer, obstore alone and host-to-device
copies alone, from one nginx on loopback that serves one checkpoint out of memory. `--shaped-mbit` fixes the source's
rate and reports how evenly landing holds it; `--memory-limit` lands whole checkpoints at the defaults and checks the
loader's peak memory. Every measurement is written to the file at once: the same command goes on with what is missing.
Exit code 1 if anything failed or took more memory than allowed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from bench.gpu import gpu, landing_report
from bench.gpu.cold_start import ensure_checkpoint, hardware
from bench.gpu.contenders import Contender
from bench.gpu.landing_points import DEFAULTS, MEMORY, OURS, PLAIN, RUNAI, TLS, Source, Sweep, all_points
from bench.gpu.landing_shaped import shaped
from bench.gpu.results import ParametersDiffer, Results
from bench.gpu.rounds import Budget, Runner
from tools.nginx import SYSTEM_CA_FILE, Nginx, nginx
from tools.nginx_binary import NginxError
from tools.random_checkpoint import SHAPES, SPARSE

# What a load needs beside its bytes, the pause before it and imports included.
_AROUND_A_LOAD_S = 8.0
_PARAMETERS = ("shape", "device", "nginx_workers", "shaped_mbit")


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--results", type=Path, required=True, help="the file to go on with, made if missing")
    add("--budget-s", type=float, default=300.0, help="no load that would end after this")
    add("--shape", choices=sorted(SHAPES), default="8b")
    add("--shards", type=int, default=4)
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--lanes", type=int, nargs="+", default=[8, 16, 32])
    add("--chunks-mib", type=int, nargs="+", default=[8, 16])
    add("--transports", nargs="+", choices=(PLAIN, TLS), default=[PLAIN, TLS])
    add("--full", action="store_true", help="lanes 4 to 64 by chunks of 4 to 32 MiB")
    add("--runai-concurrency", type=int, nargs="*", default=[8, 16, 32], help="none: leave it out")
    add("--rounds", type=int, default=3)
    add("--only", action="append", default=[], help="part of a point's name; may be repeated")
    add("--shaped-mbit", type=float, help="the source's rate in all; ours and obstore alone are measured")
    add("--memory-limit", type=float, metavar="MIB", help="most that a loader may have resident at the defaults")
    add("--memory-shapes", nargs="+", choices=sorted(SHAPES), default=["8b", SPARSE])
    add("--served-dir", type=Path, default=Path("/dev/shm/coldstream-bench"), help="in memory")
    add("--log-dir", type=Path, default=Path("/tmp/coldstream-bench-logs"), help="what the processes wrote")
    add("--nginx-workers", type=int, default=max(2, (os.cpu_count() or 2) // 2))
    add("--trust-ca", action="store_true", help=f"add the server's CA to {SYSTEM_CA_FILE}, for Run:ai")
    add("--commit", default="", help="what was measured, where there is no git")
    parsed = parser.parse_args(arguments)
    if parsed.full:
        parsed.lanes, parsed.chunks_mib = [4, 8, 16, 32, 64], [4, 8, 16, 32]
    return parsed


def main() -> int:
    """Measure what is missing, then report everything in the file."""
    arguments = parse_arguments(sys.argv[1:])
    try:
        results = Results(arguments.results, {key: getattr(arguments, key) for key in _PARAMETERS})
        sweep = sweep_of(arguments)
        _ensure_checkpoints(arguments, sweep)
        with _source(arguments) as source:
            complete, failures = measure(arguments, all_points(source, sweep), results)
    except (ParametersDiffer, NginxError) as error:
        print(f"landing: {error}", file=sys.stderr)
        return 2
    return conclude(arguments, sweep, results, complete, failures)


def sweep_of(arguments: argparse.Namespace) -> Sweep:
    """The points that the flags ask for. A shaped source tells nothing of Run:ai's best or of the bus."""
    is_shaped = arguments.shaped_mbit is not None
    return Sweep(
        grid=tuple(product(arguments.lanes, arguments.chunks_mib)),
        transports=tuple(arguments.transports),
        runai_concurrency=() if is_shaped else tuple(arguments.runai_concurrency),
        has_h2d=arguments.device == "cuda" and not is_shaped,
        memory_shapes=tuple(arguments.memory_shapes) if arguments.memory_limit is not None else (),
    )


def _ensure_checkpoints(arguments: argparse.Namespace, sweep: Sweep) -> None:
    for shape in {arguments.shape, *sweep.memory_shapes}:
        ensure_checkpoint(argparse.Namespace(**{**vars(arguments), "shape": shape}))


@contextlib.contextmanager
def _source(arguments: argparse.Namespace) -> Iterator[Source]:
    arguments.log_dir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="coldstream-landing-")))
        server = stack.enter_context(nginx(arguments.served_dir, workers=arguments.nginx_workers, state_dir=scratch))
        ports = (server.plain_port, server.tls_port)
        if arguments.shaped_mbit is not None:
            ports = stack.enter_context(shaped(ports, arguments.shaped_mbit, arguments.log_dir))
        if arguments.trust_ca:
            _trust(server)
        yield Source(arguments.served_dir, arguments.shape, server, ports, arguments.device, arguments.log_dir)


def _trust(server: Nginx) -> None:
    with SYSTEM_CA_FILE.open("a") as file:
        file.write("\n" + server.ca_file.read_text())


def measure(
    arguments: argparse.Namespace, points: Sequence[Contender], results: Results
) -> tuple[bool, dict[str, str]]:
    """Make what is missing; whether all of it was made, and who failed."""
    chosen = [
        point
        for point in points
        if not arguments.only or any(part.lower() in point.name.lower() for part in arguments.only)
    ]
    budget = Budget(arguments.budget_s, results)
    for point in chosen:
        shape = point.name.removeprefix(f"{MEMORY}, ")
        nbytes = _nbytes(arguments.served_dir / "models" / (shape if shape in SHAPES else arguments.shape))
        budget.took(point.name, _AROUND_A_LOAD_S + nbytes / 1e9 / _slowest_gb_per_s(arguments.shaped_mbit))
    runner = Runner({point.name: point for point in chosen}, results, budget, _baseline_mib(arguments.device))
    rounds = {point.name: arguments.rounds for point in chosen}
    if any(results.missing(rounds)):
        first = (next((name for name in rounds if name.startswith(f"{who},")), None) for who in (OURS, RUNAI))
        runner.warm_up([name for name in first if name])
    return runner.run(rounds), runner.failures


def _nbytes(checkpoint: Path) -> int:
    return sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))


def _slowest_gb_per_s(mbit: float | None) -> float:
    """What a load of which nothing is known is taken to reach at least."""
    return mbit / 8000 if mbit else 1.5


def _baseline_mib(device: str) -> float | None:
    return gpu.used_mib() if _is_gpu(device) else None


def _is_gpu(device: str) -> bool:
    """Whether there is a real one: the tests' driver has no nvidia-smi."""
    return device == "cuda" and shutil.which("nvidia-smi") is not None


def conclude(
    arguments: argparse.Namespace, sweep: Sweep, results: Results, complete: bool, failures: dict[str, str]
) -> int:
    """Tables, the JSON line; the exit code."""
    rows = landing_report.figures(results)
    for transport in sweep.transports:
        print("", *landing_report.matrix_lines(rows, transport, sweep.grid, "steady"), sep="\n")
    print("", *landing_report.detail_lines(rows), sep="\n")
    ratios = landing_report.ratios(rows)
    print("", *landing_report.ratio_lines(ratios), "", landing_report.DISCIPLINE, sep="\n")
    even = landing_report.evenness(results, arguments.shaped_mbit / 8000) if arguments.shaped_mbit else {}
    if even:
        print("", *landing_report.evenness_lines(even), sep="\n")
    peaks_mib = landing_report.memory_peaks_mib(rows, arguments.shape)
    over = _over_limit(peaks_mib, arguments.memory_limit)
    for line in [*over, *(f"FAILED {name}: {why}" for name, why in failures.items())]:
        print(line)
    summary: dict[str, Any] = {
        "benchmark": "gpu_landing",
        "complete": complete and not failures,
        "hardware": hardware("cuda" if _is_gpu(arguments.device) else "cpu"),
        "commit": arguments.commit or _commit(),
        "parameters": results.parameters | {"rounds": arguments.rounds, "default_lanes_and_chunk_mib": DEFAULTS},
        "discipline": landing_report.DISCIPLINE,
        "figures_median_min_max": rows,
        "ratios": ratios,
        "evenness": even,
        "peak_rss_at_defaults_mib": peaks_mib,
    }
    print(json.dumps(summary))
    return 1 if failures or over else 0


def _over_limit(peaks_mib: dict[str, float], limit_mib: float | None) -> list[str]:
    """One line per checkpoint whose loader took too much; what the others took is said."""
    if limit_mib is None:
        return []
    for shape, peak_mib in peaks_mib.items():
        print(f"peak RSS of the loader at the defaults, {shape}: {peak_mib:.0f} MiB of {limit_mib:.0f} allowed")
    return [f"OVER THE LIMIT: {shape}" for shape, peak_mib in peaks_mib.items() if peak_mib > limit_mib]


def _commit() -> str:
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        command = ["git", "rev-parse", "--short", "HEAD"]
        return subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).strip()
    return "unknown"


if __name__ == "__main__":
    # A device that is shaped must not stay so.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
