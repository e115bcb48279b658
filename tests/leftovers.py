"""What a server may leave behind: processes of its session, zombies of its own, holders of its arena.

Takes a pid, reads /proc. The server is to have been started in a session of its own, as `tools.child` does.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

_ARENA = "memfd:coldstream-arena"

Inode = tuple[int, int]


def session(pid: int) -> list[int]:
    """Everybody in the session that `pid` began, children of children and those that init took over too; no zombies."""
    return [each for each, fields in _stats() if int(fields[3]) == pid and fields[0] != "Z"]


def zombies(pid: int) -> list[int]:
    """Children of `pid` that have ended and that it has not waited for."""
    return [each for each, fields in _stats() if int(fields[1]) == pid and fields[0] == "Z"]


def arenas(pid: int) -> set[Inode]:
    """Device and inode of every arena that a process holds or maps; none of a process that is gone, or not ours."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        return {*_held(pid), *_mapped(pid)}
    return set()


def holders(inodes: set[Inode]) -> list[int]:
    """Processes on account of which the kernel keeps this memory."""
    return [pid for pid in psutil.pids() if inodes & arenas(pid)]


def _stats() -> Iterator[tuple[int, list[str]]]:
    """Every process with the fields of /proc/PID/stat that follow its name: state, parent, group, session."""
    for pid in psutil.pids():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            yield pid, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _held(pid: int) -> Iterator[Inode]:
    for link in list(Path(f"/proc/{pid}/fd").iterdir()):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if _ARENA in os.readlink(link):  # noqa: PTH115 - a memfd's name is no path
                stat = link.stat()
                yield stat.st_dev, stat.st_ino


def _mapped(pid: int) -> Iterator[Inode]:
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if _ARENA in line:
            _range, _rights, _offset, device, inode, *_ = line.split()
            major, minor = (int(part, 16) for part in device.split(":"))
            yield os.makedev(major, minor), int(inode)
