"""A folder of cached blobs that several processes share: which are open, and room for more.

    FOLDER/coldstream-cache-v1/lock           held while somebody writes, has the sum of what all blobs take
    FOLDER/coldstream-cache-v1/<64 digits>/   one version of one blob (`streaming.cache.entry`)

Takes ranges of blobs, gives them back if they are whole. Never takes more than the limit, leaves the file system its
reserve, and deletes only what has a name that it gives.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from streaming.cache.entry import NEW, Entry, create, last_used_s, lock_idle, open_entry
from streaming.cache.eviction import Resident, victims, wanted_bytes
from streaming.cache.index import Range
from streaming.cache.keys import BlobKey
from streaming.digests import crc64nvme
from streaming.options import MIB, CacheOptions

# Nobody else has a folder of this name: what is in it may be deleted.
VERSION = "coldstream-cache-v1"
_LOCK = "lock"
_TRASH = ".trash-"
_BLOB_FOLDER = re.compile(r"[0-9a-f]{64}")
# What a range is cut into: at most so much is read that was not asked for.
_PIECE_BYTES = 8 * MIB
# A folder that another process may still be making.
_STRAY_AGE_S = 600.0
# How much a process writes before it looks at the whole folder again: to look costs, and what is counted drifts.
_LOOK_BYTES = 1 << 30
_SUM_BYTES = 8


class CacheFull(Exception):
    """There is no room, and nothing that may be deleted for it."""


class Store:
    """One process's view of the folder; any thread may read, one writes.

    Raises:
        OSError: The folder cannot be made, or a stranger may have put other weights there.
    """

    def __init__(self, options: CacheOptions):
        self._options = options
        self._root = Path(options.folder) / VERSION
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (flaw := _flaw(self._root.lstat())) is not None:
            raise PermissionError(errno.EPERM, f"{VERSION} in it {flaw}: name another folder with --cache-dir")
        self._entries: dict[BlobKey, Entry] = {}
        self._lock = threading.Lock()
        self._unlooked_bytes = 0  # that may be written before the next look

    def open(self, key: BlobKey) -> Entry | None:
        """The blob's folder, from now on locked against deletion; None where there is none.

        Raises:
            OSError: The disk failed, or it is not ours to read.
        """
        with self._lock:
            entry = self._entries.get(key) or open_entry(key, self._root / key.folder)
            if entry is not None:
                self._entries[key] = entry
            return entry

    def read(self, key: BlobKey, start: int, end: int) -> memoryview | None:
        """Bytes `[start, end)`, if all of them are there and are what was written.

        Raises:
            OSError: The disk failed.
        """
        entry = self._entries.get(key)  # opened before, or made by a write: a look at the disk for every miss costs
        return entry.read(start, end) if entry else None

    def write(self, key: BlobKey, start: int, data: memoryview) -> None:
        """Keep bytes of a blob, piece by piece.

        Raises:
            CacheFull: There is no room.
            OSError: The disk is full, failed or may not be written to.
        """
        for begin in range(0, len(data), _PIECE_BYTES):
            piece = data[begin : begin + _PIECE_BYTES]
            found = Range(start + begin, start + begin + len(piece), crc64nvme(piece))
            with self._writing() as lock_fd:
                if (entry := self.open(key)) is not None and entry.has(found):
                    continue  # another process was first: it takes no room
                self._make_room(lock_fd, len(piece))
                if (entry := entry or self._make(key)) is None:
                    return  # somebody is deleting it
                entry.write(found, piece)

    def close(self) -> None:
        """Let others delete what this process has used, once nobody reads it any more."""
        with self._lock:
            self._entries.clear()

    def _make(self, key: BlobKey) -> Entry | None:
        path = self._root / key.folder
        if os.path.lexists(path):
            self._discard(path)  # it could not be opened: damaged, or a deletion that was cut off
        create(key, path)
        return self.open(key)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[int]:
        fd = os.open(self._root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield fd
        finally:
            os.close(fd)

    def _make_room(self, lock_fd: int, nbytes: int) -> None:
        """Add to the sum that all processes share, so that none of them has to look for what the others write."""
        used_bytes = int.from_bytes(os.pread(lock_fd, _SUM_BYTES, 0), "little")
        if self._unlooked_bytes < nbytes or self._wanted_bytes(nbytes, used_bytes):
            residents = list(self._residents())
            used_bytes = sum(resident.nbytes for resident in residents)
            self._unlooked_bytes = _LOOK_BYTES
            if wanted := self._wanted_bytes(nbytes, used_bytes):
                used_bytes -= self._evict(residents, wanted)
        self._unlooked_bytes -= nbytes
        os.pwrite(lock_fd, (used_bytes + nbytes).to_bytes(_SUM_BYTES, "little"), 0)

    def _wanted_bytes(self, nbytes: int, used_bytes: int) -> int:
        disk = os.statvfs(self._root)
        return wanted_bytes(
            nbytes,
            used_bytes,
            self._options.max_bytes,
            disk.f_bavail * disk.f_frsize,
            int(disk.f_blocks * disk.f_frsize * self._options.reserve_ratio),
        )

    def _evict(self, residents: list[Resident], wanted: int) -> int:
        """Delete the longest unused, if that is enough; how many bytes they took.

        Raises:
            CacheFull: It is not.
        """
        with contextlib.ExitStack() as locks:
            chosen = victims(self._idle(sorted(residents), locks), wanted)
            for resident in chosen:
                self._delete(self._root / resident.name)
        if not chosen:
            raise CacheFull
        return sum(resident.nbytes for resident in chosen)

    def _idle(self, residents: Iterable[Resident], locks: contextlib.ExitStack) -> Iterator[Resident]:
        """Those that no load uses, each locked once it is asked for: a load that starts meanwhile misses what is locked."""
        for resident in residents:
            with contextlib.suppress(OSError):
                if (fd := lock_idle(self._root / resident.name)) is not None:
                    locks.callback(os.close, fd)
                    yield resident

    def _residents(self) -> Iterator[Resident]:
        """Every blob's folder; what a process that died was making or deleting is deleted."""
        for found in os.scandir(self._root):
            path = self._root / found.name
            if _BLOB_FOLDER.fullmatch(found.name):
                yield Resident(last_used_s(path), found.name, _disk_bytes(path))
            elif found.name.startswith(_TRASH) or (found.name.startswith(NEW) and _is_old(path)):
                _remove(path)

    def _discard(self, path: Path) -> None:
        """Delete a folder, unless a load uses it."""
        with contextlib.suppress(OSError):
            if path.is_symlink():
                path.unlink()
            elif (fd := lock_idle(path)) is not None:
                self._delete(path)
                os.close(fd)

    def _delete(self, path: Path) -> None:
        """At once for everybody who looks for it, then from the disk."""
        trash = path.with_name(f"{_TRASH}{secrets.token_hex(8)}")
        path.rename(trash)
        _remove(trash)


def _flaw(found: os.stat_result) -> str | None:
    """Why what is in this folder may be a stranger's; None where only this user and its own groups could write there.

    A kubelet gives volumes to a pod's `fsGroup` and lets it write, also to what this process has made for itself alone.
    """
    if not stat.S_ISDIR(found.st_mode):
        return "is no folder"
    if found.st_uid != os.geteuid():
        return f"belongs to another user ({found.st_uid})"
    is_own_group = found.st_gid in {os.getegid(), *os.getgroups()}
    if found.st_mode & (stat.S_IWOTH if is_own_group else stat.S_IWOTH | stat.S_IWGRP):
        return f"may be written to by others (mode {stat.S_IMODE(found.st_mode):o}, group {found.st_gid})"
    return None


def _is_old(path: Path) -> bool:
    try:
        return path.lstat().st_mtime < time.time() - _STRAY_AGE_S
    except OSError:
        return False  # it has just got its name


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _disk_bytes(path: Path) -> int:
    """What a folder of files takes; data has holes."""
    try:
        return sum(os.lstat(found).st_blocks * 512 for found in os.scandir(path))
    except OSError:
        return 0  # it has just been deleted, or is no folder
