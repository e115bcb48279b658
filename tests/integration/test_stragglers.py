"""Loads from a server that stalls some ranges, and of a fleet from one that answers 503: right, in time, and with few bytes more."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from streaming.counters import FetchCounters
from streaming.messages import BlobVersion, LoadRequest
from streaming.options import PipelineOptions, SourceOptions
from streaming.pipeline import RangeReader
from streaming.reading import Reading
from streaming.source import Source, open_source
from streaming.timings import whole
from tests.checkpoints import random_shards, raw
from tests.loader import ORIGIN, Load, load
from tools.blob_server import BlobRequest, BlobServer, Fault

LANES, RANGE_BYTES = 8, 64 << 10
STALL_S = 20.0
FLEET = 14


class Stalls:
    """A server's hook: every range takes a little, and each twentieth, asked for the first time, `STALL_S`."""

    def __init__(self) -> None:
        self.on = False
        self.over = threading.Event()
        self.asked_bytes = 0
        self._asked: Counter[tuple[str, int]] = Counter()
        self._lock = threading.Lock()

    def __call__(self, request: BlobRequest) -> None:
        """Wait, before the answer and before the server's own log has the request."""
        with self._lock:
            self.asked_bytes += request.end - request.start
            self._asked[request.path, request.start] += 1
            is_first = self._asked[request.path, request.start] == 1
            stalls = self.on and is_first and request.start > 0 and len(self._asked) % 20 == 0
        self.over.wait(STALL_S if stalls else 0.03)

    def again(self) -> None:
        """Another load begins, now with stalls."""
        self.on = True
        self.asked_bytes = 0
        self._asked.clear()


def fetch_s(result: Load) -> float:
    """From the first read of weights to the end of the last."""
    assert result.error is None
    start_s, end_s = whole(result.report.shards, "fetch")
    return end_s - start_s


def test_one_range_in_twenty_may_stall(folder):
    """The bytes are right, it takes at most three times as long as without stalls, and a twentieth and a range more is read."""
    expected, stalls = random_shards(folder, megabytes=12), Stalls()
    pipeline = PipelineOptions(lanes=LANES, chunk_bytes=RANGE_BYTES)
    with BlobServer(folder, hook=stalls) as server:
        clean_s = fetch_s(load(server.url, pipeline=pipeline))
        clean_bytes = stalls.asked_bytes
        stalls.again()
        result = load(server.url, pipeline=pipeline)
        stalls.over.set()
    hedged_s, counters = fetch_s(result), result.report.counters
    print(f"clean {clean_s:.2f} s, with stalls {hedged_s:.2f} s, {counters}")
    assert all(result.tensor(name) == raw(tensor) for name, tensor in expected.items())
    assert counters.hedges_won >= 5
    assert counters.wasted_bytes == stalls.asked_bytes - clean_bytes <= 0.05 * result.report.fetched_bytes + RANGE_BYTES
    assert hedged_s < 3 * clean_s < STALL_S


async def fetch_all(reader, version: BlobVersion, lanes: int) -> bytes:
    """The whole blob, a range per lane at a time."""
    starts = iter(range(0, version.size_bytes, RANGE_BYTES))
    parts = {}

    async def lane() -> None:
        for start in starts:
            end = min(start + RANGE_BYTES, version.size_bytes)
            parts[start] = bytes(await reader.read_range(version, start, end))

    async with asyncio.TaskGroup() as group:
        for _ in range(lanes):
            group.create_task(lane())
    return b"".join(parts[start] for start in sorted(parts))


def reader_of(source: Source, lanes: int, counters: FetchCounters) -> RangeReader:
    """As the loader puts its readers together."""
    request = LoadRequest(
        origin=ORIGIN,
        uri=str(source.location),
        source=SourceOptions(max_retries=8),
        pipeline=PipelineOptions(lanes=lanes),
    )
    return Reading(source, request, counters, tell=lambda _: None).ranges()


def connections(server: BlobServer) -> int:
    """Of this process to the server, seen from its own side."""
    port = int(server.url.rpartition(":")[2])
    return sum(bool(each.raddr) and each.raddr.port == port for each in psutil.Process().net_connections("tcp"))


def test_what_was_overtaken_or_cancelled_is_gone(tmp_path):
    """No task is left of a load, and the connection of a stalled read is closed."""
    blob = os.urandom(40 * RANGE_BYTES)
    (tmp_path / "blob").write_bytes(blob)
    stalls = Stalls()
    with BlobServer(tmp_path, hook=stalls) as server:
        source = open_source(server.url, SourceOptions())
        version = source.read_prefix("blob", 1).version
        counters = FetchCounters()

        async def run(*, cancelled_after_s: float | None = None) -> None:
            reader = reader_of(source, LANES, counters)
            task = asyncio.create_task(fetch_all(reader, version, LANES))
            if cancelled_after_s is None:
                assert await task == blob
            else:
                await asyncio.sleep(cancelled_after_s)
                task.cancel()
                await asyncio.wait({task})
                assert task.cancelled()
            assert asyncio.all_tasks() == {asyncio.current_task()}
            await asyncio.sleep(0.2)  # obstore's own threads close what was dropped

        asyncio.run(run())
        for cancelled_after_s in (None, 0.1):
            stalls.again()
            asyncio.run(run(cancelled_after_s=cancelled_after_s))
            assert connections(server) <= LANES
        stalls.over.set()
        assert counters.hedges_won >= 1


class Cap:
    """A server's hook: every answer takes a fifth of a second, and 503 is the answer to more than so many per second."""

    def __init__(self, requests_per_s: float):
        self._per_s = self._tokens = requests_per_s
        self._at_s = time.monotonic()
        self._lock = threading.Lock()
        self.refused = 0

    def __call__(self, request: BlobRequest) -> Fault | None:
        """Answer, late, or refuse at once."""
        with self._lock:
            now_s = time.monotonic()
            self._tokens = min(self._per_s, self._tokens + (now_s - self._at_s) * self._per_s)
            self._at_s = now_s
            if self._tokens < 1:
                self.refused += 1
                return Fault(status=503)
            self._tokens -= 1
        time.sleep(0.2)
        return None


@pytest.mark.slow
def test_a_fleet_shares_a_server_that_answers_503(tmp_path: Path):
    """Fourteen loads at once all finish, none later than twice the time that the server needs for all; next to nothing is read twice."""
    blob = random.Random(0).randbytes(64 * RANGE_BYTES)
    (tmp_path / "blob").write_bytes(blob)
    requests_per_s, bytes_per_s = 120.0, 10e6
    ideal_s = FLEET * max(64 / requests_per_s, len(blob) / bytes_per_s)
    cap, all_counters = Cap(requests_per_s), [FetchCounters() for _ in range(FLEET)]
    with BlobServer(tmp_path, hook=cap, bytes_per_s=bytes_per_s) as server:

        async def one(counters: FetchCounters) -> float:
            source = open_source(server.url, SourceOptions())
            assert await fetch_all(reader_of(source, LANES, counters), version, LANES) == blob
            return time.monotonic() - start_s

        async def fleet() -> list[float]:
            return await asyncio.gather(*map(one, all_counters))

        version = open_source(server.url, SourceOptions()).read_prefix("blob", 1).version
        server.requests.clear()
        start_s = time.monotonic()
        ended_s = asyncio.run(fleet())
        asked = sum(request.end - request.start for request in server.requests)
    print(f"ideal {ideal_s:.1f} s, {min(ended_s):.1f} to {max(ended_s):.1f} s, {cap.refused} of {FLEET * 64} refused")
    print(f"asked for {asked / (FLEET * len(blob)):.3f} of the bytes")
    assert sum(counters.throttles for counters in all_counters) == cap.refused > 0
    assert asked <= 1.05 * FLEET * len(blob)
    assert max(ended_s) < 2 * ideal_s
