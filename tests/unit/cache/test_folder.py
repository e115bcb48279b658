"""The cache's folder: whose it is, what else lies there, and how many files of it may be open."""

from __future__ import annotations

import itertools
import os
import resource
from pathlib import Path

import pytest

from streaming import cached
from streaming.cache.keys import key_of
from streaming.cache.store import Store
from streaming.cached import OFF
from streaming.messages import BlobVersion
from streaming.options import CacheOptions
from tests.unit.cache.loads import BYTES, LOCATION, SIZE_BYTES, VERSIONS, OneLoad, loaded


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


def test_a_person_can_see_what_a_folder_is(options):
    """Address, ETag and size in JSON; the bytes at their places."""
    loaded(options, (0, SIZE_BYTES))
    (folder,) = (path for path in (Path(options.folder) / "coldstream-cache-v1").iterdir() if path.is_dir())
    assert '"uri": "http://host/model/a"' in (folder / "blob.json").read_text()
    assert (folder / "data").read_bytes() == BYTES[VERSIONS[0]]
