"""Many pods start at once and share one account's bandwidth and request limit.

The limits are low enough that two cores do not bind: 200 ranges of 16 KiB a second, 3.3 MB/s. A lane has as many ranges to read as
one has of 32 GiB at the default sizes. Of bytes requested two ratios are demanded: of those that were answered, which is
what an account's bandwidth bears, and of all that were asked for, those of refused requests too.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from streaming.options import PipelineOptions, SourceOptions
from tests.faults.server import FaultServer
from tests.faults.storm import Storm, storm
from tests.unit.checkpoints import write_checkpoint

CHUNK_BYTES, SHARDS = 16 << 10, 4
PIPELINE = PipelineOptions(lanes=4, chunk_bytes=CHUNK_BYTES)
PATIENT = SourceOptions(max_retries=20, retry_timeout_s=90, request_timeout_s=30)


def weathered(folder: Path, *, loads: int, chunks: int, bytes_per_s: float, requests_per_s: float) -> Storm:
    """A storm of loads of so many chunks each, all of which landed the right bytes."""
    nbytes = chunks // SHARDS * CHUNK_BYTES
    weights = {f"t{number}": random.Random(number).randbytes(nbytes) for number in range(SHARDS)}
    write_checkpoint(folder, {f"{name}.safetensors": {name: ("U8", (nbytes,), data)} for name, data in weights.items()})
    with FaultServer(folder, bytes_per_s=bytes_per_s, requests_per_s=requests_per_s) as server:
        seen = storm(server, PATIENT, PIPELINE, loads=loads, bytes_per_s=bytes_per_s, requests_per_s=requests_per_s)
    print(seen)
    assert [outcome.error for outcome in seen.outcomes] == [None] * loads
    # Not compared by pytest: it would print every byte.
    assert all(bool(outcome.tensors == weights) for outcome in seen.outcomes), "corrupt"
    return seen


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_fourteen_loads_weather_a_storm(tmp_path):
    """All land the right bytes within twice the ideal time, and ask for 5 % more than the least at most."""
    seen = weathered(tmp_path, loads=14, chunks=512, bytes_per_s=4e6, requests_per_s=200.0)
    assert seen.refused > 0
    assert seen.slowest <= 2.0, seen
    assert seen.amplification <= 1.05, seen
    assert seen.asked <= 1.05, seen


@pytest.mark.timeout(120)
def test_four_loads_weather_a_squall(tmp_path):
    """The same in seconds, and without a clock: right bytes, and hardly any fetched twice."""
    seen = weathered(tmp_path, loads=4, chunks=128, bytes_per_s=4e6, requests_per_s=80.0)
    assert seen.refused > 0
    assert seen.amplification <= 1.05, seen
