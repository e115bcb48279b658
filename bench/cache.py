"""What a cache on the local disk is worth: loads without one, into an empty one, and from a full one. `python -m bench.cache`.

Seconds from the loader's spawn until every byte has landed on a CPU, over local HTTP, medians of rounds that run each
once; `--rate-mb` is the source's limit, 0 is none. The page cache is as it is after the writes: a disk that has to be
read costs what it costs. Prints a table, ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from streaming.clock import boottime_s
from streaming.options import CacheOptions, PipelineOptions
from tests.loader import load
from tests.unit.checkpoints import Tensors, shard_bytes
from tools.blob_server import BlobServer, Throttle

_MIB = 1 << 20
_SHARDS = 4

Row = tuple[str, float, float]


def rounds(url: str, folder: Path, count: int) -> Iterator[Row]:
    """Which load, seconds until it had landed, and seconds that the loader stayed after that."""
    for number in range(count):
        cache = CacheOptions(folder=str(folder / f"cache-{number}"), reserve_ratio=0.0)
        for name, options in (("no cache", None), ("into the cache", cache), ("from the cache", cache)):
            start_s = boottime_s()
            result = load(url, pipeline=PipelineOptions(), cache=options)
            end_s = boottime_s()
            assert result.report is not None, result.error
            if name == "from the cache":
                counters = result.report.counters
                print(f"round {number + 1}: {counters.cache_hit_bytes} of {result.plan.fetch_bytes} bytes were there")  # type: ignore[union-attr]
            yield name, result.report.landed_s - start_s, end_s - result.report.landed_s


def medians(rows: list[Row]) -> dict[str, tuple[float, float]]:
    """Of both figures, by load."""
    names = dict.fromkeys(name for name, *_ in rows)
    return {
        name: (
            statistics.median(landed_s for each, landed_s, _ in rows if each == name),
            statistics.median(stayed_s for each, _, stayed_s in rows if each == name),
        )
        for name in names
    }


def main() -> None:
    """Measure, print, and end with the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size-mib", type=int, default=512)
    parser.add_argument("--rate-mb", type=int, nargs="+", default=[200, 0])
    options = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as name, BlobServer(Path(name) / "checkpoint") as server:
        _write_shards(Path(name) / "checkpoint", options.size_mib)
        for rate_mb in options.rate_mb:
            server.throttle = Throttle(rate_mb * 1e6) if rate_mb else None
            figures = medians(list(rounds(server.url, Path(name) / str(rate_mb), options.rounds)))
            found.append(_told(rate_mb, figures))
    print(json.dumps({"benchmark": "cache", "size_mib": options.size_mib, "rounds": options.rounds, "sources": found}))


def _write_shards(folder: Path, size_mib: int) -> None:
    folder.mkdir()
    nbytes = size_mib * _MIB // _SHARDS
    files = [f"model-{number:05}-of-{_SHARDS:05}.safetensors" for number in range(1, _SHARDS + 1)]
    for number, file in enumerate(files):
        tensors: Tensors = {str(number): ("BF16", (nbytes // 2,), os.urandom(nbytes))}
        (folder / file).write_bytes(shard_bytes(tensors))
    index = {"weight_map": {str(number): file for number, file in enumerate(files)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _told(rate_mb: int, figures: dict[str, tuple[float, float]]) -> dict[str, object]:
    """One source's rows, each as a ratio to the load without a cache."""
    plain_s, _ = figures["no cache"]
    print(f"source: {f'{rate_mb} MB/s' if rate_mb else 'unlimited'}")
    for name, (landed_s, stayed_s) in figures.items():
        print(f"  {name:16} {landed_s:6.2f} s   x {landed_s / plain_s:4.2f}   then {stayed_s:5.2f} s until its exit")
    return {
        "rate_mb_per_s": rate_mb or None,
        "landed_s": {name: round(landed_s, 3) for name, (landed_s, _) in figures.items()},
        "exit_after_landed_s": {name: round(stayed_s, 3) for name, (_, stayed_s) in figures.items()},
        "speedup_from_cache": round(plain_s / figures["from the cache"][0], 2),
        "cost_into_cache": round(figures["into the cache"][0] / plain_s, 3),
    }


if __name__ == "__main__":
    main()
