"""The cache on disk: what it may do to a load is to make it faster."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming import cached
from streaming.cache.entry import lock_idle
from streaming.cache.eviction import Resident, victims, wanted_bytes
from streaming.cache.index import RECORD_BYTES, Index, Range, decode, encode
from streaming.cache.keys import BlobKey, key_of
from streaming.cache.store import CacheFull, Store
from streaming.cache.write_behind import WriteBehind
from streaming.cached import OFF, READ_ONLY, Cached
from streaming.counters import FetchCounters
from streaming.messages import BlobVersion
from streaming.options import MIB, AzureOptions, CacheOptions
from streaming.uri import parse

LOCATION = parse("http://host/model", AzureOptions())
SIZE_BYTES = 5000
VERSIONS = tuple(BlobVersion(name, SIZE_BYTES, f'"{tag}"') for name in "ab" for tag in (1, 2))
BYTES = {version: random.Random(str(version)).randbytes(SIZE_BYTES) for version in VERSIONS}
EXTENTS = st.tuples(st.integers(0, SIZE_BYTES - 1), st.integers(1, SIZE_BYTES)).map(
    lambda pair: (min(pair), max(pair) + (pair[0] == pair[1]))
)


class Oracle:
    """A source that counts what it is asked for."""

    def __init__(self) -> None:
        self.asked_bytes = 0

    async def read_range(self, version: BlobVersion, start: int, end: int) -> bytes:
        """As a source."""
        self.asked_bytes += end - start
        return BYTES[version][start:end]


class OneLoad:
    """A decorator as a loader has it, and what it told."""

    def __init__(self, options: CacheOptions, versions=VERSIONS):
        self.oracle, self.counters, self.fallbacks = Oracle(), FetchCounters(), []
        self.cached = Cached(self.oracle, LOCATION, options, self.counters, lambda *told: self.fallbacks.append(told))
        self.cached.expect(versions)

    def settle(self) -> None:
        """Wait until nothing is being written, so that the same steps do the same."""
        while self.cached._writing._held_bytes:
            time.sleep(0.001)

    def read(self, version: BlobVersion, start: int, end: int) -> None:
        """It is right, wherever it comes from."""
        assert bytes(asyncio.run(self.cached.read_range(version, start, end))) == BYTES[version][start:end]


@pytest.fixture
def options(tmp_path) -> CacheOptions:
    """An empty folder, no reserve."""
    return CacheOptions(folder=str(tmp_path / "cache"), reserve_ratio=0.0)


def loaded(options: CacheOptions, *extents: tuple[int, int], version: BlobVersion = VERSIONS[0]) -> OneLoad:
    """A load that reads these ranges and ends."""
    load = OneLoad(options, (version,))
    for start, end in extents:
        load.read(version, start, end)
    load.cached.finish()
    return load


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
    (data,) = Path(options.folder).glob("v1/*/data")
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
    assert not list(Path(options.folder).glob("v1/*"))


def test_a_person_can_see_what_a_folder_is(options):
    """Address, ETag and size in JSON; the bytes at their places."""
    loaded(options, (0, SIZE_BYTES))
    (folder,) = (path for path in (Path(options.folder) / "v1").iterdir() if path.is_dir())
    assert '"uri": "http://host/model/a"' in (folder / "blob.json").read_text()
    assert (folder / "data").read_bytes() == BYTES[VERSIONS[0]]


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("https://me:secret@host/base", "https://host/base/s"),
        ("az://models/x", "http://127.0.0.1:10000/acc/models/x/s"),
        ("s3://bucket/x", "s3://bucket/x/s"),
        ("/disk/x", "file:///disk/x/s"),
    ],
)
def test_a_key_names_the_store_and_no_secret(uri, expected):
    """Two accounts' blobs of one name differ; user and query are no part of it."""
    azure = AzureOptions(account_name="acc", endpoint="http://127.0.0.1:10000/acc?sig=secret".partition("?")[0])
    key = key_of(parse(uri, azure), BlobVersion("s", 1, '"e"'))
    assert key == BlobKey(uri=expected, etag='"e"', size_bytes=1)


def test_the_longest_unused_blob_goes_first(options):
    """A limit of two and a half blobs keeps the two that were used last."""
    versions = [BlobVersion(str(number), MIB, '"e"') for number in range(3)]
    small = CacheOptions(folder=options.folder, reserve_ratio=0.0, max_bytes=5 * MIB // 2)
    for age_s, version in zip((300, 100, 0), versions, strict=True):
        store, key = Store(small), key_of(LOCATION, version)
        store.write(key, 0, memoryview(os.urandom(MIB)))
        store.close()
        os.utime(Path(options.folder) / "v1" / key.folder / "blob.json", (time.time() - age_s,) * 2)
    left = {path.name for path in (Path(options.folder) / "v1").iterdir()} - {"lock"}
    assert left == {key_of(LOCATION, version).folder for version in versions[1:]}


def test_what_a_load_uses_is_not_deleted(options):
    """Neither for this load's own sake nor for another's: then there is no room."""
    small = CacheOptions(folder=options.folder, reserve_ratio=0.0, max_bytes=MIB + MIB // 2)
    keys = [key_of(LOCATION, BlobVersion(name, MIB, '"e"')) for name in "ab"]
    first, second = Store(small), Store(small)
    first.write(keys[0], 0, memoryview(os.urandom(MIB)))
    with pytest.raises(CacheFull):
        second.write(keys[1], 0, memoryview(os.urandom(MIB)))
    assert lock_idle(Path(options.folder) / "v1" / keys[0].folder) is None
    first.close()
    second.write(keys[1], 0, memoryview(os.urandom(MIB)))
    second.close()


def test_a_full_cache_is_told_once_and_still_read(options):
    """No room stops the writes of this load, not its reads."""
    loaded(options, (0, 1000))
    full = CacheOptions(folder=options.folder, reserve_ratio=1.0)
    load = loaded(full, (0, 1000), (1000, 2000), (2000, 3000))
    assert load.oracle.asked_bytes == 2000
    ((what, reason),) = load.fallbacks
    assert what == READ_ONLY
    assert "raise --cache-size, or make room" in reason


def test_a_folder_that_cannot_be_made_is_told_once(tmp_path):
    """A load whose cache is a file's child reads the source."""
    (tmp_path / "file").touch()
    load = loaded(CacheOptions(folder=str(tmp_path / "file" / "cache")), (0, 1000), (0, 1000))
    assert load.oracle.asked_bytes == 2000
    assert [what for what, _ in load.fallbacks if what == OFF] == [OFF]


def test_strangers_are_deleted_in_its_own_folder_only(options):
    """Trash at once, what is old and unknown too; what is new or beside v1 stays."""
    root = Path(options.folder) / "v1"
    (root / ".trash-1").mkdir(parents=True)
    (root / "old").touch()
    os.utime(root / "old", (0, 0))
    (root / ".new-1").mkdir()
    (Path(options.folder) / "mine").touch()
    os.utime(Path(options.folder) / "mine", (0, 0))
    loaded(options, (0, 1000))
    assert {path.name for path in root.iterdir() if len(path.name) < 64} == {"lock", ".new-1"}
    assert (Path(options.folder) / "mine").exists()


@given(data=st.data(), ranges=st.lists(st.builds(Range, st.integers(0, 99), st.integers(1, 120), st.integers(0, 9))))
def test_only_whole_records_of_this_blob_count(data, ranges):
    """Whatever is cut off or changed in an index, no range comes of it that was not written."""
    key = b"k" * 32
    text = bytearray(b"".join(encode(key, found) for found in ranges))
    valid = [found for found in ranges if found.start < found.end <= 100]
    assert list(decode(key, 100, bytes(text))) == valid
    assert not list(decode(b"o" * 32, 100, bytes(text)))
    if text:
        position = data.draw(st.integers(0, len(text) - 1))
        text[position] ^= 1
        assert list(decode(key, 100, bytes(text))) == [
            found for at, found in enumerate(ranges) if found in valid and at != position // RECORD_BYTES
        ]


@given(ranges=st.lists(st.builds(Range, st.integers(0, 30), st.integers(1, 30), st.just(0))), asked=EXTENTS)
def test_a_cover_has_no_hole(ranges, asked):
    """Ranges that follow one another, or none where a byte is missing."""
    start, end = asked[0] % 30, asked[0] % 30 + 1 + asked[1] % 10
    index = Index()
    for found in ranges:
        if found.start < found.end:
            index.add(found)
    cover = index.covering(start, end)
    have = {byte for found in ranges for byte in range(found.start, found.end)}
    assert bool(cover) == (have >= set(range(start, end)))
    assert {byte for found in cover for byte in range(found.start, found.end)} >= (
        set(range(start, end)) if cover else set()
    )


@given(
    idle=st.lists(st.builds(Resident, st.floats(0, 1e9), st.text(max_size=2), st.integers(0, 100))),
    wanted=st.integers(1, 500),
)
def test_victims_are_the_oldest_and_no_more_than_it_takes(idle, wanted):
    """Enough is freed, without the youngest of them it would not be, and none goes in vain."""
    chosen = victims(idle, wanted)
    if sum(resident.nbytes for resident in idle) < wanted:
        assert chosen == []
    else:
        assert chosen == sorted(idle)[: len(chosen)]
        assert sum(resident.nbytes for resident in chosen) >= wanted > sum(each.nbytes for each in chosen[:-1])


@pytest.mark.parametrize(
    ("nbytes", "used", "limit", "free", "reserve", "expected"),
    [(1, 8, 10, 99, 9, 0), (3, 8, 10, 99, 9, 1), (3, 0, 10, 10, 9, 2), (3, 9, 10, 11, 9, 2)],
)
def test_room_is_what_limit_and_reserve_both_leave(nbytes, used, limit, free, reserve, expected):
    """The larger of the two shortfalls has to go."""
    assert wanted_bytes(nbytes, used, limit, free, reserve) == expected


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


def test_writes_are_dropped_rather_than_waited_for():
    """While one item is being written, as many wait as the limit allows; the end takes no longer than it may."""
    written, go_on = [], threading.Event()

    def write(item: memoryview) -> None:
        go_on.wait()
        written.append(bytes(item))

    queue = WriteBehind(write, 3)
    for item in (b"a", b"b", b"c", b"d"):
        queue.offer(memoryview(item))
    go_on.set()
    queue.finish(10)
    assert written == [b"a", b"b", b"c"]


def test_the_end_does_not_wait_for_a_disk_that_hangs():
    """What could not be written within the time is dropped."""
    written, begun, go_on = [], threading.Event(), threading.Event()

    def write(item: memoryview) -> None:
        begun.set()
        go_on.wait()
        written.append(bytes(item))

    queue = WriteBehind(write, 3)
    for item in (b"a", b"b"):
        queue.offer(memoryview(item))
    assert begun.wait(10)
    queue.finish(0.01)
    go_on.set()
    queue.finish(10)
    assert written == [b"a"]
