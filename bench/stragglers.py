"""Load time where one range in twenty stalls, with and without second reads. `python -m bench.stragglers`.

A local server answers every range after 50 ms, as a store far away would; 5 % of the ranges stall, each the first time it is
asked for; `--stall-s 1000` is for ever, and the read timeout ends it. Times are from the first read of weights to the last byte,
as ratios to the load without stalls. With `--runai PYTHON`, an interpreter that has it, Run:ai's Model Streamer loads from such
a server, too, in ranges of its own choice. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from streaming.options import HedgingOptions, PipelineOptions, SourceOptions
from streaming.timings import whole
from tests.loader import load
from tests.unit.checkpoints import shard_bytes
from tools.blob_server import BlobRequest, BlobServer

_MIB = 1 << 20
_SHARD_MIB, _SHARDS = 80, 4
_ANSWER_S = 0.05
_STALLED = 0.05
# Reads of headers are shorter than any of weights, and never stall.
_HEADER_BYTES = 4096
_RUNAI_LIMIT_S = 120.0
_RUNAI = Path(__file__).with_name("stragglers_runai.py")

Case = Callable[["Server", int], dict[str, float]]


class Stalls:
    """The server's hook. Which ranges stall is drawn of those of the first load, anew for every load by its seed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: dict[tuple[str, int], int] = {}
        self._over = threading.Event()

    def begin(self, seed: int, stall_s: float) -> None:
        """Another load, whose stalls last so long; 0 is none."""
        places = sorted(self._asked)
        self._stalled = set(random.Random(seed).sample(places, round(_STALLED * len(places)) if stall_s else 0))
        self._stall_s = stall_s
        self._asked = dict.fromkeys(places, 0)
        self.asked_bytes = 0

    def end(self) -> None:
        """Let go whoever is stalled still."""
        self._over.set()
        self._over = threading.Event()

    def __call__(self, request: BlobRequest) -> None:
        """Wait as long as it takes this range."""
        if request.start == 0 or request.end - request.start < _HEADER_BYTES:
            self._over.wait(_ANSWER_S)
            return
        place = request.path, request.start
        with self._lock:
            self.asked_bytes += request.end - request.start
            self._asked[place] = self._asked.get(place, 0) + 1
            stalls = place in self._stalled and self._asked[place] == 1
            over = self._over
        over.wait(self._stall_s if stalls else _ANSWER_S)


def write(folder: Path) -> None:
    """A checkpoint of zeros."""
    for number in range(_SHARDS):
        size = _SHARD_MIB * _MIB
        blob = shard_bytes({f"t{number}": ("U8", (size,), bytes(size))})
        (folder / f"model-{number + 1:05}-of-{_SHARDS:05}.safetensors").write_bytes(blob)
    names = {f"t{number}": f"model-{number + 1:05}-of-{_SHARDS:05}.safetensors" for number in range(_SHARDS)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


class Server:
    """A blob server of the checkpoint, and its stalls; one for each reader, because they ask for different ranges."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.stalls = Stalls()
        self.blobs = BlobServer(folder.parent, hook=self.stalls)

    @property
    def url(self) -> str:
        """The checkpoint's URL."""
        return f"{self.blobs.url}/{self.folder.name}"


def ours(stall_s: float, budget_ratio: float) -> Case:
    """A load by the loader process; gives seconds, bytes asked for over bytes needed, and second reads."""

    def measured(server: Server, seed: int) -> dict[str, float]:
        server.stalls.begin(seed, stall_s)
        pipeline = PipelineOptions(chunk_bytes=_MIB, hedging=HedgingOptions(budget_ratio=budget_ratio))
        result = load(server.url, source=SourceOptions(), pipeline=pipeline)
        server.stalls.end()
        assert result.error is None, result.error
        assert result.report is not None
        start_s, end_s = whole(result.report.shards, "fetch")
        return {
            "load_s": end_s - start_s,
            "asked_ratio": server.stalls.asked_bytes / result.report.fetched_bytes,
            "hedges": result.report.counters.hedges,
        }

    return measured


def runai(python: str, stall_s: float) -> Case:
    """A load by Run:ai's Model Streamer, by its S3 reader and with as many lanes as ours; infinite if it does not end."""

    def measured(server: Server, seed: int) -> dict[str, float]:
        server.stalls.begin(seed, stall_s)
        shards = [f"s3://{server.folder.name}/{path.name}" for path in sorted(server.folder.glob("*.safetensors"))]
        try:
            done = subprocess.run(
                [python, str(_RUNAI), *shards],
                env=runai_environ(server.blobs.url),
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                timeout=_RUNAI_LIMIT_S,
            )
            load_s = float(done.stdout.split()[-1])
        except subprocess.TimeoutExpired:
            load_s = math.inf
        finally:
            server.stalls.end()
        return {"load_s": load_s, "asked_ratio": server.stalls.asked_bytes / (_SHARDS * _SHARD_MIB * _MIB), "hedges": 0}

    return measured


def runai_environ(endpoint: str) -> dict[str, str]:
    """What its S3 reader needs to ask a plain HTTP server, which compares no signature."""
    return {
        "PATH": os.environ["PATH"],
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": endpoint,
        "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
        "RUNAI_STREAMER_CONCURRENCY": str(PipelineOptions().lanes),
    }


def measure(cases: dict[str, Case], rounds: int) -> dict[str, list[dict[str, float]]]:
    """Every case in turn; which ranges there are is learnt by a load before."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        write(folder)
        server = Server(folder)
        with server.blobs:
            next(iter(cases.values()))(server, 0)  # which ranges there are, and what only the first load pays
            for seed in range(rounds):
                for name, case in cases.items():
                    runs[name].append(case(server, seed))
    return runs


def report(runs: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """A table of medians, over the first case's."""
    rows = {
        name: {key: round(statistics.median(run[key] for run in of_case), 3) for key in of_case[0]}
        for name, of_case in runs.items()
    }
    clean_s = next(iter(rows.values()))["load_s"]
    print(f"{'':28} {'load':>8} {'worst':>8} {'ratio':>6} {'bytes asked':>12} {'second reads':>13}")
    for name, row in rows.items():
        row["worst_s"] = round(max(run["load_s"] for run in runs[name]), 3)
        row["ratio"] = round(row["load_s"] / clean_s, 2)
        load = f"{row['load_s']:6.2f} s {row['worst_s']:6.2f} s {row['ratio']:6.2f}"
        if math.isinf(row["load_s"]):
            load = f"not finished after {_RUNAI_LIMIT_S:.0f} s"
        print(f"{name:28} {load:>24} {row['asked_ratio']:12.3f} {row['hedges']:13.0f}")
    return rows


def main() -> None:
    """Measure in turns, print medians, and end with the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stall-s", type=float, default=5.0)
    parser.add_argument("--runai", metavar="PYTHON", help="an interpreter with runai-model-streamer-s3")
    options = parser.parse_args()
    share = HedgingOptions().budget_ratio
    loaders: list[dict[str, Case]] = [
        {
            "clean": ours(0.0, share),
            "stalls, read again": ours(options.stall_s, share),
            "stalls, waited for": ours(options.stall_s, 0.0),
        }
    ]
    if options.runai:
        loaders.append(
            {
                "Run:ai, clean": runai(options.runai, 0.0),
                "Run:ai, stalls": runai(options.runai, options.stall_s),
            }
        )
    print(f"load average {os.getloadavg()[0]:.1f}")
    rows: dict[str, dict[str, float]] = {}
    for cases in loaders:
        rows |= report(measure(cases, options.rounds))
    print(f"load average {os.getloadavg()[0]:.1f}")
    print(json.dumps({"benchmark": "stragglers", "rounds": options.rounds, "stall_s": options.stall_s, "cases": rows}))


if __name__ == "__main__":
    main()
