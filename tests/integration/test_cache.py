"""Loader processes with a cache on the local disk: what it saves, and what it survives."""

from __future__ import annotations

import random
import resource
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from safetensors.torch import load_file

from streaming.cache.index import decode
from streaming.cache.keys import BlobKey
from streaming.cached import OFF, READ_ONLY
from streaming.counters import FetchCounters
from streaming.messages import LandedChunks, Planned
from streaming.options import CacheOptions, PipelineOptions
from tests.checkpoints import SMALL, random_shards, raw
from tests.loader import Load, load
from tools.blob_server import BlobServer, Throttle

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


def test_a_loader_may_open_all_the_files_that_the_hard_limit_allows(folder, cache):
    """A low soft limit, as shells and services have it, costs no cache."""
    random_shards(folder)
    limits = _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard > 200
    seen = []

    def look(child, _message):
        if not seen:
            seen.append(Path(f"/proc/{child.process.pid}/limits").read_text())

    with BlobServer(folder) as server:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        try:
            load(server.url, pipeline=SMALL, cache=cache, on_message=look)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    (line,) = (line.split() for line in seen[0].splitlines() if line.startswith("Max open files"))
    assert line[3] == line[4] == str(hard)


def test_chunks_of_another_size_are_found_too(folder, cache):
    """A load that is cut differently reads what it needs of the ranges that are there."""
    expected = random_shards(folder)
    with BlobServer(folder) as server:
        load(server.url, pipeline=SMALL, cache=cache)
        second = load(server.url, pipeline=PipelineOptions(lanes=3, chunk_bytes=100_001), cache=cache)
    assert is_exact(second, expected)
    assert counted(second).cache_miss_bytes == 0


def test_a_loader_that_is_killed_at_any_moment_leaves_a_good_cache(folder, cache):
    """Seven times killed at random: the next one lands every byte, and asks for none that had been kept."""
    expected = random_shards(folder)
    rng = random.Random(1)
    kept_bytes = []
    with BlobServer(folder, bytes_per_s=6e6) as server:
        for _ in range(7):
            _load_and_kill(server.url, cache, after_s=rng.uniform(0.1, 0.9))
            kept_bytes.append(_kept_bytes(cache))
        server.throttle = None
        server.requests.clear()
        result = load(server.url, pipeline=SMALL, cache=cache)
        refetched = weights_bytes(server, result)
    assert is_exact(result, expected)
    assert kept_bytes == sorted(kept_bytes)  # what is there stays there
    assert kept_bytes[-1] > 0
    assert counted(result).cache_hit_bytes == kept_bytes[-1]
    assert refetched == counted(result).cache_miss_bytes == result.plan.fetch_bytes - kept_bytes[-1]


def _load_and_kill(url: str, cache: CacheOptions, *, after_s: float) -> None:
    """SIGKILL, so long after the first chunk was planned."""
    timers = []

    def kill_later(child, message):
        if isinstance(message, Planned):
            timers.append(threading.Timer(after_s, child.process.kill))
            timers[-1].start()

    load(url, pipeline=SMALL, cache=cache, on_message=kill_later)
    for timer in timers:
        timer.join()


def _kept_bytes(cache: CacheOptions) -> int:
    """What the indexes name; no two of these ranges overlap."""
    kept = 0
    # What was being made when its loader was killed has a name that begins with a dot.
    for folder in Path(cache.folder).glob("coldstream-cache-v1/[!.]*/"):
        key = msgspec.json.decode((folder / "blob.json").read_bytes(), type=BlobKey)
        ranges = set(decode(key.digest, key.size_bytes, (folder / "index").read_bytes()))
        kept += sum(found.end - found.start for found in ranges)
    return kept


def test_two_loaders_share_it_at_once(folder, cache):
    """Both land every byte, and the next one fetches nothing."""
    expected = random_shards(folder)
    with BlobServer(folder, bytes_per_s=20e6) as server, ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: load(server.url, pipeline=SMALL, cache=cache), range(2)))
        third = load(server.url, pipeline=SMALL, cache=cache)
    assert all(is_exact(result, expected) for result in (*both, third))
    assert not both[0].fallbacks + both[1].fallbacks + third.fallbacks
    assert counted(third).cache_miss_bytes == 0


def test_a_folder_deleted_in_the_middle_costs_only_the_cache(folder, cache):
    """Somebody makes room by hand while a load reads from it and writes to it."""
    expected = random_shards(folder)
    with BlobServer(folder) as server:
        load(server.url, pipeline=SMALL, cache=cache)
        for entry in sorted(Path(cache.folder).glob("coldstream-cache-v1/*/"))[:1]:
            shutil.rmtree(entry)
        server.throttle = Throttle(2e6)
        seen = []

        def delete(child, message):
            if isinstance(message, LandedChunks) and not seen:
                seen.append(message)
                while Path(cache.folder).exists():  # a folder may come, or get another name, while it is listed
                    shutil.rmtree(cache.folder, ignore_errors=True)

        result = load(server.url, pipeline=SMALL, cache=cache, on_message=delete)
    assert is_exact(result, expected)
    assert [fallback.what for fallback in result.fallbacks] == [READ_ONLY]


def test_an_overwritten_blob_is_not_read_from_the_disk(folder, cache):
    """Another ETag is another blob, whatever its name and size."""
    random_shards(folder)
    with BlobServer(folder) as server:
        load(server.url, pipeline=SMALL, cache=cache)
        for shard in folder.glob("*.safetensors"):
            data = bytearray(shard.read_bytes())
            data[-1] ^= 1
            shard.write_bytes(data)
        second = load(server.url, pipeline=SMALL, cache=cache)
    assert counted(second).cache_hit_bytes == 0
    assert all(
        raw(t) == second.tensor(name) for shard in folder.glob("*.safetensors") for name, t in load_file(shard).items()
    )


# A file system of its own, seen by the loaders alone: a mount needs a namespace, and that needs root.
IN_A_MOUNT = """
import sys
from streaming.options import CacheOptions, PipelineOptions
from tests.loader import load
url, folder, times = sys.argv[1:]
pipeline, cache = PipelineOptions(lanes=4, chunk_bytes=64 << 10), CacheOptions(folder=folder, reserve_ratio=0.0)
for _ in range(int(times)):
    result = load(url, pipeline=pipeline, cache=cache)
print(result.error, [fallback.what for fallback in result.fallbacks], result.report.counters.cache_hit_bytes)
print(*(fallback.reason for fallback in result.fallbacks), sep="\\n")
"""


def _in_a_mount(folder: Path, options: str, url: str, *, times: int = 1) -> list[str]:
    """Load from `url` with a cache in a tmpfs with these mount options; the words of the last load."""
    folder.mkdir()
    script = 'mount -t tmpfs -o "$1" none "$2"; shift 2; exec "$@"'
    command = ["unshare", "--mount", "--map-root-user", "sh", "-ec", script, "sh", options, str(folder)]
    command += [sys.executable, "-c", IN_A_MOUNT, url, str(folder), str(times)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("size=1m", "{} is full of what is in use: raise --cache-size, or make room"),
        ("nr_inodes=9", "{}: No space left on device"),  # free blocks, and room for one blob's files
    ],
)
def test_a_full_disk_costs_only_the_rest(folder, tmp_path, options, reason):
    """It is told once; what was kept before is found by the next load."""
    expected = random_shards(folder)
    with BlobServer(folder) as server:
        *_, summary, told = _in_a_mount(tmp_path / "full", options, server.url, times=2)
    assert summary.startswith(f"None ['{READ_ONLY}'] ")
    assert 0 < int(summary.split()[-1]) < sum(len(raw(tensor)) for tensor in expected.values())
    assert told == reason.format(tmp_path / "full")


def test_a_disk_that_may_only_be_read_is_told_once(folder, tmp_path):
    """EROFS: the load goes on without the cache."""
    random_shards(folder)
    with BlobServer(folder) as server:
        summary, reason = _in_a_mount(tmp_path / "ro", "ro", server.url)
    assert summary == f"None ['{OFF}'] 0"
    assert reason == f"{tmp_path}/ro: Read-only file system"
