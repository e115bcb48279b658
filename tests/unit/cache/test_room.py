"""Who has to go from a cache that is full, and who shares it."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from streaming.cache.entry import lock_idle
from streaming.cache.keys import key_of
from streaming.cache.store import CacheFull, Store
from streaming.cached import READ_ONLY
from streaming.messages import BlobVersion
from streaming.options import MIB, CacheOptions
from tests.unit.cache.loads import BYTES, LOCATION, SIZE_BYTES, VERSIONS, loaded


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
