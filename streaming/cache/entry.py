"""One blob's folder: `blob.json` says what it is, `data` has its bytes in their places, `index` names those that are there.

Takes and gives bytes of one version. Whoever uses the folder holds a shared lock on `blob.json`, as long as the `Entry` lives. Nothing is trusted
that its digest does not vouch for, so nothing is ever synced: a crash costs ranges, never right bytes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import stat
import threading
import weakref
from pathlib import Path

import msgspec

from streaming.cache.index import RECORD_BYTES, Index, Range, decode, encode
from streaming.cache.keys import BlobKey
from streaming.digests import crc64nvme

NEW = ".new-"
_BLOB, _DATA, _INDEX = "blob.json", "data", "index"
# Not blocking, because a stranger's pipe would.
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_MOST_NAME_BYTES = 64 << 10
# What the folder of a blob must not be made of.
_DAMAGED = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO}


class Entry:
    """One open folder, for any number of threads; `fds` are of blob.json (locked), data and index."""

    def __init__(self, key: BlobKey, fds: tuple[int, int, int]):
        self._key_digest, self._size_bytes = key.digest, key.size_bytes
        lock_fd, self._data_fd, self._index_fd = fds
        self._fds = [*fds]
        weakref.finalize(self, _close, self._fds)  # not before the last read in a thread has ended
        self._writing_fds: tuple[int, int] | None = None
        self._index = Index()
        self._seen_bytes = 0
        self._lock = threading.Lock()
        with contextlib.suppress(OSError):  # a disk that may only be read
            os.utime(lock_fd)

    def read(self, start: int, end: int) -> memoryview | None:
        """Bytes `[start, end)`, if all of them are there and are what was written.

        Raises:
            OSError: The disk failed.
        """
        with self._lock:
            self._catch_up()
            ranges = self._index.covering(start, end)
        if not ranges:
            return None
        base = ranges[0].start
        data = memoryview(read_at(self._data_fd, base, ranges[-1].end))
        rotten = [found for found in ranges if not found.is_of(data[found.start - base : found.end - base])]
        with self._lock:
            for found in rotten:
                self._index.drop(found)
        return None if rotten else data[start - base : end - base]

    def write(self, start: int, data: memoryview) -> None:
        """Put bytes in their place, then say so. One process and thread at a time.

        Raises:
            OSError: The disk is full or failed.
        """
        found = Range(start, start + len(data), crc64nvme(data))
        with self._lock:
            self._catch_up()
            if self._index.has(found):
                return  # another server was first
        data_fd, index_fd = self._open_for_writing()
        write_at(data_fd, data, start)
        size_bytes = os.fstat(index_fd).st_size
        whole_bytes = size_bytes - size_bytes % RECORD_BYTES  # over what somebody's end has torn
        write_at(index_fd, memoryview(encode(self._key_digest, found)), whole_bytes)
        with self._lock:
            self._index.add(found)

    def _open_for_writing(self) -> tuple[int, int]:
        """Of the same files: the names may lead to others by now, or nowhere."""
        if self._writing_fds is None:
            data_fd, index_fd = (
                os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_CLOEXEC) for fd in (self._data_fd, self._index_fd)
            )
            self._writing_fds = data_fd, index_fd
            self._fds += self._writing_fds
        return self._writing_fds

    def _catch_up(self) -> None:
        """Read what has been added to the index, by whomever."""
        size_bytes = os.fstat(self._index_fd).st_size
        size_bytes -= size_bytes % RECORD_BYTES
        if size_bytes <= self._seen_bytes:
            return
        for found in decode(self._key_digest, self._size_bytes, read_at(self._index_fd, self._seen_bytes, size_bytes)):
            self._index.add(found)
        self._seen_bytes = size_bytes


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def open_entry(key: BlobKey, path: Path) -> Entry | None:
    """The folder at `path`, locked; None where there is none, or one that is damaged or about to go.

    Raises:
        OSError: The disk failed, or the folder is not ours to read.
    """
    fds: list[int] = []
    try:
        fds.extend(os.open(path / name, _FLAGS) for name in (_BLOB, _DATA, _INDEX))
        if _is_whole(key, path, fds):
            return Entry(key, (fds.pop(0), fds.pop(0), fds.pop(0)))
    except OSError as error:
        if error.errno not in _DAMAGED:
            raise
    finally:
        for fd in fds:
            os.close(fd)
    return None


def _is_whole(key: BlobKey, path: Path, fds: list[int]) -> bool:
    """Whether these are files, of this blob, and nobody deletes them or has done so before they were locked."""
    if not all(stat.S_ISREG(os.fstat(fd).st_mode) for fd in fds):
        return False
    try:
        fcntl.flock(fds[0], fcntl.LOCK_SH | fcntl.LOCK_NB)
        found = msgspec.json.decode(read_at(fds[0], 0, _MOST_NAME_BYTES), type=BlobKey)
    except (BlockingIOError, msgspec.DecodeError, UnicodeDecodeError):
        return False
    return found == key and (path / _BLOB).lstat().st_ino == os.fstat(fds[0]).st_ino


def create(key: BlobKey, path: Path) -> None:
    """Make the folder, whole from its first moment; another process may have been first.

    Raises:
        OSError: The disk is full, failed or may not be written to.
    """
    new = path.with_name(f"{NEW}{os.getpid()}-{secrets.token_hex(4)}")
    new.mkdir(mode=0o700)
    try:
        (new / _BLOB).write_bytes(msgspec.json.format(msgspec.json.encode(key)))
        (new / _DATA).touch(0o600)
        (new / _INDEX).touch(0o600)
        new.rename(path)
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise


def lock_idle(path: Path) -> int | None:
    """A descriptor that keeps every load away from the folder; None while one uses it. Close it to let them in again.

    Raises:
        OSError: There is no such folder any more.
    """
    try:
        fd = os.open(path / _BLOB, _FLAGS)
    except OSError:
        return os.open(path, _FLAGS)  # no load can use it
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def last_used_s(path: Path) -> float:
    """When a load last opened it (Unix time); 0.0 where nothing tells."""
    try:
        return (path / _BLOB).lstat().st_mtime
    except OSError:
        return 0.0


def read_at(fd: int, start: int, end: int) -> bytes:
    """Bytes `[start, end)` of a file, or as many as it has."""
    data = os.pread(fd, end - start, start)
    while len(data) < end - start:  # more than 2 GiB at once, or a short file
        more = os.pread(fd, end - start - len(data), start + len(data))
        if not more:
            break
        data += more
    return data


def write_at(fd: int, data: memoryview, start: int) -> None:
    """All of `data` from `start` on."""
    while data:
        written = os.pwrite(fd, data, start)
        data, start = data[written:], start + written
