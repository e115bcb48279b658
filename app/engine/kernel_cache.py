"""Kernels that were compiled ahead, put where Triton looks for its own. Knows no kernel and no Triton."""

from __future__ import annotations

import contextlib
from pathlib import Path


def link_compiled(compiled: Path, cache: Path) -> int:
    """Give `cache` a link to every folder of `compiled` that it lacks; how many it got.

    Links, since `compiled` may be read-only and `cache` is where the rest is compiled to. Links to a folder that is gone, of an
    older image say, are removed: Triton would fail on them. An empty folder is what a compilation leaves that failed.

    Raises:
        OSError: There is no `compiled`, or no way to write `cache`.
    """
    cache.mkdir(parents=True, exist_ok=True)
    for entry in cache.iterdir():
        if entry.is_symlink() and not entry.exists():
            entry.unlink(missing_ok=True)
    linked = 0
    for folder in compiled.iterdir():
        link = cache / folder.name
        with contextlib.suppress(OSError):  # not there, or not empty
            link.rmdir()
        with contextlib.suppress(FileExistsError):  # compiled here, or another engine was first
            link.symlink_to(folder.absolute())
            linked += 1
    return linked
