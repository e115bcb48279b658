"""Where the limits of this process lie: the folders of its control group, version 1 or 2.

Takes a controller's name ("memory", "cpu"), gives folders. Knows no limit. `root` stands before every path, so that
a test can have another machine's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

_MOUNT = "/sys/fs/cgroup"


def folders(controller: str, root: str = "") -> Iterator[str]:
    """The group's own folder, then those of its parents, whose limits count as well.

    A container may see its own group as the mount's top while its path is the node's: folders that are not there
    are the reader's to skip.
    """
    mount, path = _place(controller, root)
    parts = [part for part in path.split("/") if part]
    if ".." in parts:  # of a group outside of what is mounted here
        parts = []
    for depth in range(len(parts), -1, -1):
        yield "/".join((root + mount, *parts[:depth]))


def read(folder: str, name: str) -> str | None:
    """The text of one of a group's files; None where there is none."""
    with contextlib.suppress(OSError), open(f"{folder}/{name}", encoding="ascii") as file:  # noqa: PTH123 - pathlib costs 10 ms of import
        return file.read().strip()
    return None


def _place(controller: str, root: str) -> tuple[str, str]:
    """The mount of a controller's hierarchy and the group's path in it; version 2 has one for all."""
    mount, path = _MOUNT, "/"
    with contextlib.suppress(OSError), open(f"{root}/proc/self/cgroup", encoding="utf-8") as lines:  # noqa: PTH123 - pathlib costs 10 ms of import
        for line in lines:
            _, controllers, where = line.rstrip("\n").split(":", 2)
            if controller in controllers.split(","):
                return f"{_MOUNT}/{controllers}", where
            if not controllers:
                path = where
    return mount, path
