"""Cold start: exec to first token over HTTP, ours from a folder and from Blob storage beside `from_pretrained`.

`python -m bench.cold_start [--runs 5]`. Every round runs each contender once, so that a noisy machine is noisy
for all of them. Ends with one JSON line; draws docs/cold_start.png.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench.probing import Prober, get_status
from streaming.clock import exec_time_s
from streaming.options import AzureOptions, SourceOptions
from streaming.upload import push
from tests.coldstream import Server, serving, wait_for
from tools.azurite import azurite
from tools.blob_server import BlobServer
from tools.demo_model import ensure_demo_model

PROMPT = "The capital of France is"
CHART = Path(__file__).parents[1] / "docs" / "cold_start.png"

Measurement = dict[str, float]


def first_token_once(uri: str, environ: Mapping[str, str]) -> Measurement:
    """One cold start of ours, asked like a load balancer asks: until /health is 200, then for one token."""
    with _serving(uri, environ) as (server, port):
        wait_for(lambda: get_status(port, "/health") == 200, 120)
        answer = server.complete(PROMPT, max_tokens=1)
        milestones = server.client.get("/startupz").json()["milestones"]
    assert answer["choices"][0]["text"]
    return {"first_token_s": milestones["first_answer_time"]}


def probes_once(uri: str, environ: Mapping[str, str]) -> Measurement:
    """One cold start under a probe every 10 ms (which itself costs a tenth of this machine)."""
    with _serving(uri, environ) as (server, port):
        exec_s = exec_time_s(server.pid)
        with Prober(port, "/livez") as livez:
            wait_for(lambda: get_status(port, "/health") == 200, 120)
    assert livez.first_200_s is not None
    return {"livez_s": livez.first_200_s - exec_s, **livez.figures_ms()}


@contextmanager
def _serving(uri: str, environ: Mapping[str, str]) -> Iterator[tuple[Server, int]]:
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(uri, log_path=Path(folder) / "log", environ=environ) as server,
    ):
        yield server, int(server.url.rpartition(":")[2])


def from_pretrained_once(folder: Path) -> Measurement:
    """One cold start of transformers, from the same folder."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.from_pretrained", str(folder), PROMPT],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    exec_s = exec_time_s(process.pid)
    output, _ = process.communicate()
    return {"first_token_s": float(output.split()[-1]) - exec_s}


def measure(runs: int) -> dict[str, list[Measurement]]:
    """Every contender's measurements, round by round, after one round that warms the page cache."""
    folder = ensure_demo_model()
    with ExitStack() as stack:
        blobs = stack.enter_context(azurite(Path(stack.enter_context(tempfile.TemporaryDirectory()))))
        uri = "az://bench/smollm2-135m-instruct"
        push(folder, uri, SourceOptions(azure=AzureOptions(connection_string=blobs.connection_string)), quiet=True)
        slow = stack.enter_context(BlobServer(folder, bytes_per_s=30e6))
        contenders: dict[str, Callable[[], Measurement]] = {
            "coldstream, local folder": lambda: first_token_once(str(folder), {}),
            "coldstream, az:// (Azurite)": lambda: first_token_once(uri, blobs.environment()),
            "transformers from_pretrained, local folder": lambda: from_pretrained_once(folder),
            "/livez during the load, local folder": lambda: probes_once(str(folder), {}),
            "/livez during the load, az:// (Azurite)": lambda: probes_once(uri, blobs.environment()),
            "/livez during the load, http:// at 30 MB/s": lambda: probes_once(slow.url, {}),
        }
        results: dict[str, list[Measurement]] = {name: [] for name in contenders}
        for round_number in range(runs + 1):
            for name, once in contenders.items():
                measurement = once()
                if round_number:
                    results[name].append(measurement)
                figure, value = next(iter(measurement.items()))
                print(f"round {round_number}: {name}: {figure} {value:.2f}", flush=True)
    return results


def spread(values: list[float]) -> dict[str, float]:
    """Median with minimum and maximum."""
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


def summary(results: dict[str, list[Measurement]]) -> dict[str, Any]:
    """What the JSON line holds."""
    figures = {
        name: {key: spread([measurement[key] for measurement in measurements]) for key in measurements[0]}
        for name, measurements in results.items()
    }
    ours, blob, rival = (figures[name]["first_token_s"]["median"] for name in list(results)[:3])
    return {
        "benchmark": "cold_start",
        "model": "SmolLM2-135M-Instruct, bfloat16, 269 MB",
        "hardware": f"{os.cpu_count()} CPU cores, {platform.processor() or platform.machine()}",
        "commit": subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], text=True).strip(),
        "runs": len(next(iter(results.values()))),
        "figures": figures,
        "times_sooner_local": round(rival / ours, 2),
        "times_sooner_blob": round(rival / blob, 2),
    }


def print_table(figures: dict[str, dict[str, dict[str, float]]]) -> None:
    """One row per contender and figure."""
    print(f"\n{'':44} {'figure':14} {'median':>8} {'min':>8} {'max':>8}")
    for name, rows in figures.items():
        for key, values in rows.items():
            print(f"{name:44} {key:14} {values['median']:8.2f} {values['min']:8.2f} {values['max']:8.2f}")


def draw(figures: dict[str, dict[str, dict[str, float]]]) -> None:
    """Bars of the first token's time, with whiskers from minimum to maximum."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name in figures if "first_token_s" in figures[name]][::-1]
    rows = [figures[name]["first_token_s"] for name in names]
    medians = [row["median"] for row in rows]
    whiskers = [[m - row["min"] for m, row in zip(medians, rows, strict=True)]]
    whiskers.append([row["max"] - m for m, row in zip(medians, rows, strict=True)])
    figure, axes = plt.subplots(figsize=(8, 2.4), layout="constrained")
    axes.barh(names, medians, xerr=whiskers, color=["#999999", "#2a7ab9", "#2a7ab9"], capsize=3)
    axes.set_xlabel("exec to first token, seconds (median, min to max)")
    figure.savefig(CHART, dpi=120)


def main() -> None:
    """Measure, print, draw; the JSON line comes last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    results = measure(parser.parse_args().runs)
    report = summary(results)
    print_table(report["figures"])
    draw(report["figures"])
    print(json.dumps(report))


if __name__ == "__main__":
    main()
