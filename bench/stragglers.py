"""Load time where one range in twenty stalls, with and without second reads. `python -m bench.stragglers`.

A local server answers every range after 50 ms, as a store far away would; 5 % of the ranges stall, each the first time it is
asked for; `--stall-s 1000` is for ever, and the read timeout ends it. Times are from the first read of weights to the last byte, as ratios to the load without stalls. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import threading
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
        if request.start == 0:
            return  # metadata
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


def measured(server: BlobServer, stalls: Stalls, seed: int, stall_s: float, budget_ratio: float) -> dict[str, float]:
    """Seconds, bytes asked for over bytes needed, and second reads of one load."""
    stalls.begin(seed, stall_s)
    pipeline = PipelineOptions(chunk_bytes=_MIB, hedging=HedgingOptions(budget_ratio=budget_ratio))
    result = load(server.url, source=SourceOptions(), pipeline=pipeline)
    stalls.end()
    assert result.error is None, result.error
    assert result.report is not None
    start_s, end_s = whole(result.report.shards, "fetch")
    return {
        "load_s": end_s - start_s,
        "asked_ratio": stalls.asked_bytes / result.report.fetched_bytes,
        "hedges": result.report.counters.hedges,
    }


def main() -> None:
    """Measure in turns, print medians, and end with the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stall-s", type=float, default=5.0)
    options = parser.parse_args()
    share = HedgingOptions().budget_ratio
    cases = {
        "clean": (0.0, share),
        "stalls, read again": (options.stall_s, share),
        "stalls, waited for": (options.stall_s, 0.0),
    }
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    stalls = Stalls()
    with tempfile.TemporaryDirectory() as folder, BlobServer(Path(folder), hook=stalls) as server:
        write(Path(folder))
        for seed in range(options.rounds):
            for name, (stall_s, budget_ratio) in cases.items():
                runs[name].append(measured(server, stalls, seed, stall_s, budget_ratio))
    rows = {
        name: {key: round(statistics.median(run[key] for run in of_case), 3) for key in of_case[0]}
        for name, of_case in runs.items()
    }
    for row in rows.values():
        row["ratio"] = round(row["load_s"] / rows["clean"]["load_s"], 2)
    print(f"{'':20} {'load':>8} {'ratio':>6} {'bytes asked':>12} {'second reads':>13}")
    for name, row in rows.items():
        print(f"{name:20} {row['load_s']:6.2f} s {row['ratio']:6.2f} {row['asked_ratio']:12.3f} {row['hedges']:13.0f}")
    print(json.dumps({"benchmark": "stragglers", "rounds": options.rounds, "stall_s": options.stall_s, "cases": rows}))


if __name__ == "__main__":
    main()
