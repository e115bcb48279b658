"""Loader processes with a cache on the local disk: what it saves, and what it survives."""

from __future__ import annotations

import pytest

from streaming.counters import FetchCounters
from streaming.options import CacheOptions
from tests.checkpoints import SMALL, random_shards, raw
from tests.loader import Load, load
from tools.blob_server import BlobServer

# Disks of developers are fuller than a node's should be.
WITHOUT_RESERVE = {"reserve_ratio": 0.0}


@pytest.fixture
def cache(tmp_path) -> CacheOptions:
    """An empty one."""
    return CacheOptions(folder=str(tmp_path / "cache"), **WITHOUT_RESERVE)


def is_exact(result: Load, expected) -> bool:
    """Whether every tensor has landed bit for bit."""
    return result.error is None and all(result.tensor(name) == raw(tensor) for name, tensor in expected.items())


def counted(result: Load) -> FetchCounters:
    """What the loader met."""
    assert result.report is not None
    return result.report.counters


def weights_bytes(server: BlobServer, result: Load) -> int:
    """Bytes of chunks that the source was asked for; headers are asked for every time."""
    chunks = {(f"/{chunk.shard}", chunk.start, chunk.end) for chunk in result.plan.chunks}
    asked = [(request.path, request.start, request.end) for request in server.requests]
    return sum(end - start for path, start, end in asked if (path, start, end) in chunks)


def test_a_second_start_reads_the_disk(folder, cache):
    """What the first load has fetched is not asked for again, and lands bit for bit."""
    expected = random_shards(folder)
    with BlobServer(folder) as server:
        first = load(server.url, pipeline=SMALL, cache=cache)
        server.requests.clear()
        second = load(server.url, pipeline=SMALL, cache=cache)
        assert weights_bytes(server, second) == 0
    total = first.plan.fetch_bytes
    assert is_exact(first, expected)
    assert is_exact(second, expected)
    assert (counted(first).cache_hit_bytes, counted(first).cache_miss_bytes) == (0, total)
    assert (counted(second).cache_hit_bytes, counted(second).cache_miss_bytes) == (total, 0)
    assert not first.fallbacks + second.fallbacks
