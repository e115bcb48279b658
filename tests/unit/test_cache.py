"""The cache on disk: what it may do to a load is to make it faster."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import resource
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


def test_a_person_can_see_what_a_folder_is(options):
    """Address, ETag and size in JSON; the bytes at their places."""
    loaded(options, (0, SIZE_BYTES))
    (folder,) = (path for path in (Path(options.folder) / "coldstream-cache-v1").iterdir() if path.is_dir())
    assert '"uri": "http://host/model/a"' in (folder / "blob.json").read_text()
    assert (folder / "data").read_bytes() == BYTES[VERSIONS[0]]


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("https://host/base/", "https://host/base/s"),
        ("az://models/x", "http://127.0.0.1:10000/acc/models/x/s"),
        ("s3://bucket/x", "s3://bucket/x/s"),
        ("/disk/x", "file:///disk/x/s"),
    ],
)
def test_a_key_names_the_store(uri, expected):
    """Two accounts' blobs of one name differ; what a location shows holds no secret."""
    azure = AzureOptions(account_name="acc", endpoint="http://127.0.0.1:10000/acc")
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
        os.utime(Path(options.folder) / "coldstream-cache-v1" / key.folder / "blob.json", (time.time() - age_s,) * 2)
    left = {path.name for path in (Path(options.folder) / "coldstream-cache-v1").iterdir()} - {"lock"}
    assert left == {key_of(LOCATION, version).folder for version in versions[1:]}


def test_the_folder_is_not_looked_at_for_every_range(options, monkeypatch):
    """Once for a store's first write, and then every so many bytes: with hundreds of blobs a look costs milliseconds."""
    looks = []
    residents = Store._residents
    monkeypatch.setattr(Store, "_residents", lambda store: looks.append(store) or residents(store))
    monkeypatch.setattr("streaming.cache.store._LOOK_BYTES", SIZE_BYTES)
    store = Store(options)
    for start in range(0, SIZE_BYTES, 100):
        store.write(key_of(LOCATION, VERSIONS[0]), start, memoryview(BYTES[VERSIONS[0]])[start : start + 100])
    assert len(looks) == 1
    store.write(key_of(LOCATION, VERSIONS[2]), 0, memoryview(BYTES[VERSIONS[2]])[:100])
    assert len(looks) == 2


def test_processes_that_share_it_keep_one_limit(options):
    """What one has written counts for the other at once, though neither looks at the folder."""
    small = CacheOptions(folder=options.folder, reserve_ratio=0.0, max_bytes=3 * MIB - 1)
    stores = [Store(small), Store(small)]
    keys = [key_of(LOCATION, BlobVersion(name, 3 * MIB, '"e"')) for name in "ab"]

    def write(number: int) -> None:
        stores[number % 2].write(keys[number % 2], number // 2 * MIB // 2, memoryview(os.urandom(MIB // 2)))

    for number in range(5):
        write(number)
    with pytest.raises(CacheFull):
        write(5)
    data = Path(options.folder).glob("coldstream-cache-v1/*/data")
    assert 2 * MIB <= sum(path.stat().st_blocks * 512 for path in data) <= 3 * MIB


def test_a_sum_that_is_wrong_is_put_right(options):
    """Blobs deleted by hand make room, and those that were put there take it."""
    small = CacheOptions(folder=options.folder, reserve_ratio=0.0, max_bytes=3 * MIB)
    keys = [key_of(LOCATION, BlobVersion(name, 2 * MIB, '"e"')) for name in "ab"]
    root = Path(options.folder) / "coldstream-cache-v1"
    Store(small).write(keys[0], 0, memoryview(os.urandom(2 * MIB)))
    shutil.rmtree(root / keys[0].folder)
    store = Store(small)
    store.write(keys[1], 0, memoryview(os.urandom(2 * MIB)))
    (root / "lock").write_bytes(b"")
    with pytest.raises(CacheFull):
        Store(small).write(keys[0], 0, memoryview(os.urandom(2 * MIB)))
    store.close()


def test_what_a_load_uses_is_not_deleted(options):
    """Neither for this load's own sake nor for another's: then there is no room."""
    small = CacheOptions(folder=options.folder, reserve_ratio=0.0, max_bytes=MIB + MIB // 2)
    keys = [key_of(LOCATION, BlobVersion(name, MIB, '"e"')) for name in "ab"]
    first, second = Store(small), Store(small)
    first.write(keys[0], 0, memoryview(os.urandom(MIB)))
    with pytest.raises(CacheFull):
        second.write(keys[1], 0, memoryview(os.urandom(MIB)))
    assert lock_idle(Path(options.folder) / "coldstream-cache-v1" / keys[0].folder) is None
    first.close()
    second.write(keys[1], 0, memoryview(os.urandom(MIB)))
    second.close()


def test_a_load_that_starts_while_room_is_made_finds_what_stays(options, monkeypatch):
    """Only what goes is locked while it goes."""
    small = CacheOptions(folder=options.folder, reserve_ratio=0.0, max_bytes=5 * MIB // 2)
    keys = [key_of(LOCATION, BlobVersion(name, MIB, '"e"')) for name in "abc"]
    for age_s, key in zip((300, 100), keys, strict=False):
        Store(small).write(key, 0, memoryview(os.urandom(MIB)))
        os.utime(Path(options.folder) / "coldstream-cache-v1" / key.folder / "blob.json", (time.time() - age_s,) * 2)
    found = []
    delete = Store._delete

    def start_and_delete(store: Store, path: Path) -> None:
        found.append([Store(small).open(key) is not None for key in keys])
        delete(store, path)

    monkeypatch.setattr(Store, "_delete", start_and_delete)
    Store(small).write(keys[2], 0, memoryview(os.urandom(MIB)))
    assert found == [[False, True, False]]


def test_a_blob_that_is_locked_for_a_moment_is_waited_for(options, monkeypatch):
    """Somebody looks whether it is idle: it is there all the same."""
    key = key_of(LOCATION, VERSIONS[0])
    Store(options).write(key, 0, memoryview(BYTES[VERSIONS[0]]))
    fd = lock_idle(Path(options.folder) / "coldstream-cache-v1" / key.folder)
    assert fd is not None
    monkeypatch.setattr("streaming.cache.entry.time.sleep", lambda _: os.close(fd))
    assert Store(options).open(key) is not None


def test_what_another_process_has_written_takes_no_room(options):
    """Two replicas that start together: the second finds the cache full of what it wants to write."""
    small = CacheOptions(folder=options.folder, reserve_ratio=0.0, max_bytes=MIB + MIB // 2)
    key, data = key_of(LOCATION, BlobVersion("a", MIB, '"e"')), memoryview(os.urandom(MIB))
    first, second = Store(small), Store(small)
    assert second.open(key) is None
    first.write(key, 0, data)
    second.write(key, 0, data)
    assert second.read(key, 0, MIB) == data


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


@pytest.fixture
def few_files():
    """Allows so many more descriptors than are open; the old limit is back afterwards."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    def allow(more: int) -> None:
        free = itertools.filterfalse(open_fds().__contains__, itertools.count())
        resource.setrlimit(resource.RLIMIT_NOFILE, (next(itertools.islice(free, more, None)), limits[1]))

    yield allow
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def open_fds() -> set[int]:
    """What this process has open."""
    return {int(fd.name) for fd in Path("/proc/self/fd").iterdir()}


def test_more_blobs_than_descriptors_are_not_cached(options, few_files):
    """Before any is opened: what is left is for the source. It is told once, with the figures."""
    loaded(options, (0, 1000))
    few_files(cached.open_files(1))
    many = [VERSIONS[0], *(BlobVersion(str(number), 10, '"e"') for number in range(300))]
    load = OneLoad(options, many)
    load.read(VERSIONS[0], 0, 1000)
    load.cached.finish()
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = cached.open_files(len(many))
    assert load.fallbacks == [
        (OFF, f"301 cached blobs take {needed} open files, {limit} are allowed: raise `ulimit -Hn`")
    ]
    assert loaded(options, (0, 1000)).oracle.asked_bytes == 0


def test_descriptors_that_run_out_are_given_back(options, few_files, monkeypatch):
    """EMFILE in the middle of the blobs: none stays open, and the load reads the source."""
    versions = [VERSIONS[0], *(BlobVersion(str(number), 10, '"e"') for number in range(10))]
    store = Store(options)
    for version in versions:
        store.write(key_of(LOCATION, version), 0, memoryview(BYTES[VERSIONS[0]])[:10])
    store.close()
    monkeypatch.setattr(cached, "_OTHER_FILES", -1000)
    before = open_fds()
    few_files(10)
    load = OneLoad(options, versions)
    assert load.cached._ready.exception() is not None  # an event loop takes some, too
    assert len(open_fds()) == len(before)
    load.read(VERSIONS[0], 0, 1000)
    assert load.fallbacks == [(OFF, f"{options.folder}: Too many open files")]
    load.cached.finish()


def test_a_blob_takes_no_more_descriptors_than_are_counted(options):
    """Whether it is read or written."""
    store, before = Store(options), open_fds()
    for version in VERSIONS:
        store.write(key_of(LOCATION, version), 0, memoryview(BYTES[version]))
        assert store.read(key_of(LOCATION, version), 0, SIZE_BYTES) == BYTES[version]
    taken = len(open_fds() - before)
    assert taken == cached.open_files(len(VERSIONS)) - cached.open_files(0)
    store.close()


@pytest.mark.parametrize(
    ("mode", "uid", "gid", "reason"),
    [
        (0o700, 0, 0, None),
        (0o755, 0, 1, None),
        (0o2770, 0, 0, None),  # as a kubelet leaves it for a pod's fsGroup
        (0o700, 1, 0, "belongs to another user ({uid})"),
        (0o2770, 0, 1, "may be written to by others (mode 2770, group {gid})"),
        (0o1777, 0, 0, "may be written to by others (mode 1777, group {gid})"),
    ],
)
def test_a_folder_that_others_may_write_to_is_not_used(options, monkeypatch, mode, uid, gid, reason):
    """Their weights would be served; it is told once, and neither read nor written. `uid` and `gid`: 1 is a stranger's."""
    root = Path(options.folder) / "coldstream-cache-v1"
    loaded(options, (0, 1000))
    root.chmod(mode)
    found = root.stat()
    monkeypatch.setattr(os, "geteuid", lambda: found.st_uid + uid)
    monkeypatch.setattr(os, "getegid", lambda: found.st_gid + gid)
    monkeypatch.setattr(os, "getgroups", list)
    load = loaded(options, (0, 1000), (1000, 2000))
    if reason is None:
        assert (load.oracle.asked_bytes, load.fallbacks) == (1000, [])
    else:
        told = reason.format(uid=found.st_uid, gid=found.st_gid)
        line = f"{options.folder}: coldstream-cache-v1 in it {told}: name another folder with --cache-dir"
        assert (load.oracle.asked_bytes, load.fallbacks) == (2000, [(OFF, line)])


def test_a_link_in_the_place_of_its_folder_is_not_followed(options, tmp_path):
    """Wherever it leads."""
    Path(options.folder).mkdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (Path(options.folder) / "coldstream-cache-v1").symlink_to(tmp_path / "elsewhere")
    load = loaded(options, (0, 1000))
    assert [what for what, _ in load.fallbacks] == [OFF]
    assert not list((tmp_path / "elsewhere").iterdir())


def test_only_its_own_leavings_are_deleted(options):
    """Trash at once, what was being made after ten minutes; never what has a name that the cache does not give."""
    root = Path(options.folder) / "coldstream-cache-v1"
    for name in (".trash-1", ".new-1", ".new-2", "model", "lost+found"):
        (root / name).mkdir(parents=True)
        (root / name / "weights").write_bytes(b"precious")
        if name != ".new-2":
            os.utime(root / name, (0, 0))
    (Path(options.folder) / "v1" / "model").mkdir(parents=True)
    os.utime(Path(options.folder) / "v1" / "model", (0, 0))
    loaded(options, (0, 1000))
    assert {path.name for path in root.iterdir() if len(path.name) < 64} == {"lock", ".new-2", "model", "lost+found"}
    assert (root / "model" / "weights").read_bytes() == b"precious"
    assert (Path(options.folder) / "v1" / "model").exists()


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
    chosen = victims(sorted(idle), wanted)
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
