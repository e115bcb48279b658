"""Loader processes that share a cache and die, or whose cache is taken away, at any moment: the next one is right."""

from __future__ import annotations

import contextlib
import random
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec
import pytest

from app.child import Child
from streaming.cache.index import decode
from streaming.cache.keys import BlobKey
from streaming.options import CacheOptions
from tests.checkpoints import SMALL, random_shards, raw, write_manifest
from tests.faults.server import FaultServer
from tests.loader import Load, load
from tools.blob_server import Throttle

# Three megabytes in fifty chunks take half a second; a moment is a message of the loader's, and a little more.
BYTES_PER_S = 6e6
MOST_MORE_S = 0.02
FEW, MANY = pytest.param(4, id="few"), pytest.param(50, id="many", marks=[pytest.mark.slow, pytest.mark.timeout(600)])


@dataclass(frozen=True)
class Served:
    """A folder with a manifest, every tensor's bytes, and how much and how often a loader tells of it."""

    folder: Path
    tensors: dict[str, bytes]
    fetch_bytes: int = 0
    messages: int = 0

    def check(self, result: Load) -> None:
        """Every tensor has landed bit for bit, and every byte was compared on its way."""
        assert result.error is None, result.error
        assert {name: result.tensor(name) for name in self.tensors} == self.tensors
        assert (result.counters.verified_bytes, result.counters.mismatches) == (result.plan.fetch_bytes, 0)

    def moments(self, count: int) -> list[int]:
        """After how many messages: random, one of each part of a load from its first word to its last."""
        step = self.messages / count
        return [round(random.uniform(number * step, (number + 1) * step)) for number in range(count)]


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Served:
    """Three shards of every dtype, in small blocks."""
    folder = tmp_path_factory.mktemp("served")
    tensors = {name: raw(tensor) for name, tensor in random_shards(folder).items()}
    write_manifest(folder, 64 << 10)
    heard = []
    with FaultServer(folder) as server:
        whole = load(server.url, pipeline=SMALL, on_message=lambda _, message: heard.append(message))
    return Served(folder, tensors, whole.plan.fetch_bytes, len(heard))


@pytest.fixture
def caches(tmp_path):
    """Empty ones, as many as are asked for."""
    return (CacheOptions(folder=str(tmp_path / f"cache-{number}"), reserve_ratio=0.0) for number in range(100))


def published(cache: CacheOptions) -> dict[tuple[str, str], set[tuple[int, int]]]:
    """The ranges that the indexes name by blob and version; from its record on a range is promised to the next load."""
    found = {}
    for folder in Path(cache.folder).glob("v1/*/"):
        with contextlib.suppress(FileNotFoundError):  # one that was deleted while it was made
            key = msgspec.json.decode((folder / "blob.json").read_bytes(), type=BlobKey)
            ranges = decode(key.digest, key.size_bytes, (folder / "index").read_bytes())
            found[key.uri, key.etag] = {(each.start, each.end) for each in ranges}
    return found


def nbytes_of(found: dict[tuple[str, str], set[tuple[int, int]]]) -> int:
    """Bytes of ranges, of which no two overlap."""
    return sum(end - start for ranges in found.values() for start, end in ranges)


def weights_asked(server: FaultServer, result: Load) -> int:
    """Bytes of chunks that the server was asked for; headers are asked for every time."""
    chunks = {(chunk.shard, chunk.start, chunk.end) for chunk in result.plan.chunks}
    asked = [(each.name, each.start, each.end) for each in list(server.requests)]
    return sum(end - start for name, start, end in asked if (name, start, end) in chunks)


class Later:
    """Does something after so many messages of the loader, and a little later; it has been done when the block is over."""

    def __init__(self, after_messages: int, act: Callable[[Child], object]):
        self._left = after_messages
        self._act = act
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Self:
        """Nothing is done yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Wait until it is done, if its moment has come."""
        if self._timer is not None:
            self._timer.join()

    def __call__(self, child: Child, _message: object) -> None:
        """As `on_message`."""
        self._left -= 1
        if self._left < 0 and self._timer is None:
            self._timer = threading.Timer(random.uniform(0, MOST_MORE_S), self._act, (child,))
            self._timer.start()


def check_next(served: Served, server: FaultServer, cache: CacheOptions, kept_bytes: int) -> None:
    """The next start lands every byte, reads what had been published from disk and asks for the rest alone."""
    server.throttle, server.requests[:] = None, []
    result = load(server.url, pipeline=SMALL, cache=cache)
    served.check(result)
    assert result.counters.cache_hit_bytes == kept_bytes
    assert weights_asked(server, result) == result.plan.fetch_bytes - kept_bytes


@pytest.mark.parametrize("deaths", [FEW, MANY])
def test_after_a_kill_at_any_moment_the_next_start_reads_what_was_published(served, caches, deaths):
    """SIGKILL: the next loader is right, finds every range whose record was written, and fetches no byte of those."""
    kept = []
    for after, cache in zip(served.moments(deaths), caches, strict=False):
        with FaultServer(served.folder, bytes_per_s=BYTES_PER_S) as server:
            with Later(after, lambda child: child.process.kill()) as kill:
                load(server.url, pipeline=SMALL, cache=cache, on_message=kill)
            kept.append(nbytes_of(published(cache)))
            check_next(served, server, cache, kept[-1])
    print(f"{deaths} deaths, published bytes {sorted(kept)}")
    assert 0 < sum(kept) < deaths * served.fetch_bytes, "the moments were all alike"


@pytest.mark.parametrize("deaths", [pytest.param(1, id="one"), pytest.param(20, id="many", marks=MANY.marks)])
def test_when_one_of_two_that_share_it_is_killed_nobody_is_wrong(served, caches, deaths):
    """The other one lands every byte, and the next one reads all of them from disk."""
    for after, cache in zip(served.moments(deaths), caches, strict=False):
        with FaultServer(served.folder, bytes_per_s=BYTES_PER_S) as server, ThreadPoolExecutor(1) as pool:
            other = pool.submit(load, server.url, pipeline=SMALL, cache=cache)
            with Later(after, lambda child: child.process.kill()) as kill:
                load(server.url, pipeline=SMALL, cache=cache, on_message=kill)
            served.check(other.result())
            assert not other.result().fallbacks
            check_next(served, server, cache, other.result().plan.fetch_bytes)


@pytest.mark.parametrize("times", [pytest.param(2, id="two"), pytest.param(20, id="many", marks=MANY.marks)])
def test_a_cache_that_is_deleted_at_any_moment_is_only_slower(served, caches, times):
    """`rm -rf` under a load that reads half from it: this one and the next one land every byte."""
    for after, cache in zip(served.moments(times), caches, strict=False):
        with FaultServer(served.folder) as server:
            load(server.url, pipeline=SMALL, cache=cache)
            for entry in sorted(Path(cache.folder).glob("v1/*/"))[:1]:
                shutil.rmtree(entry)
            server.throttle = Throttle(BYTES_PER_S)
            with Later(after, lambda _: shutil.rmtree(cache.folder, ignore_errors=True)) as delete:  # noqa: B023
                served.check(load(server.url, pipeline=SMALL, cache=cache, on_message=delete))
            check_next(served, server, cache, nbytes_of(published(cache)))
