"""What verification costs a load: our loader with and without a manifest, in turn. `python -m bench.verification`.

A folder of random bytes behind nginx on this machine (plain HTTP), landed in host memory; or another URI that has a
manifest and its twin without: `python -m bench.verification URI_WITH URI_WITHOUT`. Also digests alone, in one thread. The landing
rate counts from the plan to the last landed byte. Ends with one JSON line.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from streaming.digests import crc64nvme, summarize
from streaming.manifest import MANIFEST_NAME, Manifest, encoded
from streaming.messages import Planned
from streaming.options import MIB, PipelineOptions
from tests.loader import load
from tests.unit.checkpoints import write_checkpoint
from tools.nginx import nginx

_SHARDS, _SHARD_MIB, _ROUNDS = 4, 256, 9


def land(uri: str) -> tuple[float, float, int]:
    """One load: seconds from the plan to the last landed byte, the loader's processor seconds, and bytes verified."""
    planned_s = 0.0

    def hear(_child: object, message: object) -> None:
        nonlocal planned_s
        if isinstance(message, Planned):
            planned_s = message.planned_s

    before = os.times()
    result = load(uri, pipeline=PipelineOptions(), on_message=hear)
    after = os.times()
    assert result.report is not None, result.error
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return result.report.landed_s - planned_s, cpu_s, result.report.counters.verified_bytes


def compare(uris: dict[str, str]) -> dict[str, dict[str, float]]:
    """Medians of so many loads of each, one after the other, so that both meet the same machine."""
    runs: dict[str, list[tuple[float, float, int]]] = {name: [] for name in uris}
    for name, uri in uris.items():
        assert bool(land(uri)[2]) == (name == "verified")  # and the page cache is warm
    for number in range(_ROUNDS):
        for name in sorted(uris, reverse=bool(number % 2)):
            runs[name].append(land(uris[name]))
    return {
        name: {
            "landing_s": round(statistics.median(run[0] for run in found), 4),
            "least_s": round(min(run[0] for run in found), 4),
            "cpu_s": round(statistics.median(run[1] for run in found), 3),
        }
        for name, found in runs.items()
    }


def digest_gib_per_s() -> float:
    """CRC-64/NVME of blocks that no cache holds, in one thread; the best of three passes."""
    data = memoryview(os.urandom(256 * MIB))
    rates = []
    for _ in range(3):
        start_s = time.perf_counter()
        for at in range(0, len(data), 8 * MIB):
            crc64nvme(data[at : at + 8 * MIB])
        rates.append(len(data) / (time.perf_counter() - start_s) / (1 << 30))
    return round(max(rates), 1)


def make(folder: Path) -> None:
    """Two checkpoints of the same files: `verified` has a manifest, `plain` has none."""
    nbytes = _SHARD_MIB * MIB
    names = [f"model-{number}.safetensors" for number in range(_SHARDS)]
    write_checkpoint(
        folder / "verified", {name: {name: ("BF16", (nbytes // 2,), os.urandom(nbytes))} for name in names}
    )
    shutil.copytree(folder / "verified", folder / "plain", copy_function=os.link)
    files = {path.name: summarize(path, 8 * MIB).digests for path in (folder / "verified").iterdir()}
    (folder / "verified" / MANIFEST_NAME).write_bytes(encoded(Manifest(block_bytes=8 * MIB, files=files)))


def main(uris: list[str]) -> None:
    """Measure, print, and end with the JSON line."""
    with tempfile.TemporaryDirectory() as state:
        if uris:
            found = compare(dict(zip(("verified", "plain"), uris, strict=True)))
        else:
            make(Path(state) / "root")
            with nginx(Path(state) / "root", workers=2, state_dir=Path(state) / "state") as server:
                found = compare({name: f"{server.plain_url}/{name}" for name in ("verified", "plain")})
    ratio = found["verified"]["landing_s"] / found["plain"]["landing_s"]
    for name, figures in found.items():
        print(f"{name:9} {figures}")
    print(f"verification takes {100 * (ratio - 1):+.1f} % of the landing time")
    print(
        json.dumps(
            {"benchmark": "verification", "ratio": round(ratio, 4), **found, "digest_gib_per_s": digest_gib_per_s()}
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
