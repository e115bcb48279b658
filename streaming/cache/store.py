"""A folder of cached blobs that several processes share: which are open, and room for more.

    FOLDER/v1/lock           held while somebody writes, so that nobody counts the same room twice
    FOLDER/v1/<64 digits>/   one version of one blob (`streaming.cache.entry`)

Takes ranges of blobs, gives them back if they are whole. Never takes more than the limit, leaves the file system its
reserve, and deletes what it does not know within `v1` only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from streaming.cache.entry import Entry, create, last_used_s, lock_idle, open_entry
from streaming.cache.eviction import Resident, victims, wanted_bytes
from streaming.cache.keys import BlobKey
from streaming.options import MIB, CacheOptions

VERSION = "v1"
_LOCK = "lock"
_TRASH = ".trash-"
_BLOB_FOLDER = re.compile(r"[0-9a-f]{64}")
# What a range is cut into: at most so much is read that was not asked for.
_PIECE_BYTES = 8 * MIB
# A folder that another process is making, or a stranger's.
_STRAY_AGE_S = 600.0


class CacheFull(Exception):
    """There is no room, and nothing that may be deleted for it."""


class Store:
    """One process's view of the folder; any thread may read, one writes."""

    def __init__(self, options: CacheOptions):
        self._options = options
        self._root = Path(options.folder) / VERSION
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._entries: dict[BlobKey, Entry] = {}
        self._lock = threading.Lock()

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
            with self._writing():
                self._make_room(len(piece))
                entry = self.open(key) or self._make(key)
                if entry is None:
                    return  # somebody is deleting it
                entry.write(start + begin, piece)

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
    def _writing(self) -> Iterator[None]:
        fd = os.open(self._root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _make_room(self, nbytes: int) -> None:
        residents = list(self._residents())
        disk = os.statvfs(self._root)
        wanted = wanted_bytes(
            nbytes,
            sum(resident.nbytes for resident in residents),
            self._options.max_bytes,
            disk.f_bavail * disk.f_frsize,
            int(disk.f_blocks * disk.f_frsize * self._options.reserve_ratio),
        )
        if wanted and not self._evict(residents, wanted):
            raise CacheFull

    def _evict(self, residents: list[Resident], wanted: int) -> bool:
        """Delete the longest unused, if that is enough."""
        with contextlib.ExitStack() as locks:
            idle = []
            for resident in residents:
                with contextlib.suppress(OSError):
                    if (fd := lock_idle(self._root / resident.name)) is not None:
                        locks.callback(os.close, fd)
                        idle.append(resident)
            chosen = victims(idle, wanted)
            for resident in chosen:
                self._delete(self._root / resident.name)
        return bool(chosen)

    def _residents(self) -> Iterator[Resident]:
        """Every blob's folder; what is none and is not being made is deleted."""
        for found in os.scandir(self._root):
            path = self._root / found.name
            if _BLOB_FOLDER.fullmatch(found.name):
                yield Resident(last_used_s(path), found.name, _disk_bytes(path))
            elif found.name != _LOCK:
                with contextlib.suppress(OSError):
                    is_old = path.lstat().st_mtime < time.time() - _STRAY_AGE_S
                    if is_old or found.name.startswith(_TRASH):
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


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _disk_bytes(path: Path) -> int:
    """What a folder of files takes; data has holes."""
    try:
        return sum(os.lstat(found).st_blocks * 512 for found in os.scandir(path))
    except OSError:
        return 0  # it has just been deleted, or is no folder
