"""What lies on the disk may make a load faster, and never wrong."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming import cached
from streaming.cache.keys import key_of
from streaming.cache.store import Store
from streaming.cached import OFF
from streaming.messages import BlobVersion
from streaming.options import CacheOptions
from tests.unit.cache.loads import BYTES, EXTENTS, LOCATION, SIZE_BYTES, VERSIONS, OneLoad, loaded

DAMAGE = st.sampled_from(["flip", "truncate", "extend", "remove", "swap", "folder", "link", "pipe"])
# A few extents again and again, or nothing would ever be found.
USUAL = st.sampled_from([(0, SIZE_BYTES), (0, 2500), (2500, SIZE_BYTES), (1000, 3000)])
STEP = st.one_of(
    st.tuples(st.just("read"), st.sampled_from(VERSIONS[:3]), USUAL | EXTENTS),
    st.tuples(st.just("restart")),
    st.tuples(DAMAGE, st.integers(0, 1 << 30)),
)


@settings(max_examples=150, deadline=None)
@given(steps=st.lists(STEP, min_size=10, max_size=40))
def test_whatever_happens_to_the_disk_every_byte_is_right(steps):
    """Reads and restarts between random damage to random files: the source's bytes, and never an error."""
    with tempfile.TemporaryDirectory() as folder:
        options = CacheOptions(folder=folder, reserve_ratio=0.0)
        load = OneLoad(options)
        for kind, *arguments in steps:
            match kind:
                case "read":
                    load.read(arguments[0], *arguments[1])
                case "restart":
                    load.cached.finish()
                    load = OneLoad(options)
                case _:
                    load.settle()
                    _damage(Path(folder), kind, random.Random(arguments[0]))
        load.cached.finish()


def _damage(folder: Path, kind: str, rng: random.Random) -> None:
    """What crashes, disks, people and other programs do to files."""
    found = sorted(path for path in folder.rglob("*"))
    files = [path for path in found if path.is_file() and not path.is_symlink()]
    if not files:
        return
    kinds = sorted({path.name for path in files})
    name = rng.choice(kinds)
    path = rng.choice([path for path in files if path.name == name])
    size_bytes = path.stat().st_size
    match kind:
        case "flip" if size_bytes:
            data = bytearray(path.read_bytes())
            data[rng.randrange(size_bytes)] ^= 1 << rng.randrange(8)
            path.write_bytes(data)
        case "truncate":
            os.truncate(path, rng.randint(0, size_bytes))
        case "extend":
            path.write_bytes(path.read_bytes() + rng.randbytes(rng.randint(1, 100)))
        case "swap":  # another blob's file in this one's place
            shutil.copyfile(other, path) if (other := rng.choice(files)) != path else None
        case "remove":
            target = rng.choice(found)
            shutil.rmtree(target) if target.is_dir() and not target.is_symlink() else target.unlink()
        case "folder" | "link" | "pipe":
            path.unlink()
            {"folder": Path.mkdir, "link": lambda p: p.symlink_to("/nowhere"), "pipe": os.mkfifo}[kind](path)


@given(extents=st.lists(EXTENTS, min_size=1, max_size=12), asked=EXTENTS)
@settings(max_examples=60, deadline=None)
def test_what_is_covered_is_not_fetched(extents, asked):
    """A later load fetches a range exactly if earlier ones have left a byte of it out, however they were cut."""
    with tempfile.TemporaryDirectory() as folder:
        options = CacheOptions(folder=folder, reserve_ratio=0.0)
        loaded(options, *extents)
        second = loaded(options, asked)
    have = {byte for start, end in extents for byte in range(start, end)}
    is_hit = have >= set(range(*asked))
    nbytes = asked[1] - asked[0]
    assert second.oracle.asked_bytes == (0 if is_hit else nbytes)
    assert (second.counters.cache_hit_bytes, second.counters.cache_miss_bytes) == (
        (nbytes, 0) if is_hit else (0, nbytes)
    )


def test_a_rotten_range_is_fetched_and_mended(options):
    """One flipped bit costs one read, once."""
    loaded(options, (0, 1000), (1000, 2000))
    (data,) = Path(options.folder).glob("coldstream-cache-v1/*/data")
    rotten = bytearray(data.read_bytes())
    rotten[1500] ^= 1
    data.write_bytes(rotten)
    assert loaded(options, (0, 1000), (1000, 2000)).oracle.asked_bytes == 1000
    assert loaded(options, (0, 1000), (1000, 2000)).oracle.asked_bytes == 0


def test_a_refused_range_is_fetched_and_replaced(options):
    """Bytes that were wrong before they were kept are not served twice, and right ones take their place."""
    wrong = BYTES[VERSIONS[0]][:99] + b"\0"
    store = Store(options)
    store.write(key_of(LOCATION, VERSIONS[0]), 0, memoryview(wrong))
    store.close()
    load = OneLoad(options)
    assert bytes(asyncio.run(load.cached.read_range(VERSIONS[0], 0, 100))) == wrong
    load.cached.refuse(VERSIONS[0], 0, 100)
    load.read(VERSIONS[0], 0, 100)
    load.cached.finish()
    assert loaded(options, (0, 100)).oracle.asked_bytes == 0


def test_another_version_shares_nothing(options):
    """The same name with another ETag is another blob."""
    loaded(options, (0, 1000))
    assert loaded(options, (0, 1000), version=VERSIONS[1]).oracle.asked_bytes == 1000


@pytest.mark.parametrize("etag", [None, 'W/"1"'])
def test_what_has_no_strong_etag_is_not_kept(options, etag):
    """It is told once, and nothing is written."""
    load = OneLoad(options, [BlobVersion(name, 10, etag) for name in "ab"])
    load.cached.finish()
    ((what, reason),) = load.fallbacks
    assert what == OFF
    assert "no strong ETag (a)" in reason
    assert not list(Path(options.folder).glob("coldstream-cache-v1/*"))


def test_a_disk_that_hangs_is_waited_for_once(options, monkeypatch):
    """A read that does not answer turns the cache off; the load goes on with the source."""
    loaded(options, (0, 1000))
    hang = threading.Event()
    monkeypatch.setattr(cached, "_PATIENCE_S", 0.05)
    monkeypatch.setattr(Store, "read", lambda *_: hang.wait() and None)
    load = OneLoad(options, VERSIONS[:1])
    for _ in range(3):
        load.read(VERSIONS[0], 0, 1000)
    hang.set()
    load.cached.finish()
    assert load.fallbacks == [(OFF, f"{options.folder}: no answer within 0.05 s")]
