"""Commands that end, each in a process of its own, forked from one that has imported what they import.

Takes words and variables, gives exit code and output. Of a command that takes moments most of the time is imports, the same
in each of dozens of tests. What reads variables while it is imported, as the hub's client does, is left to each process.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path

from tests.coldstream import children_of

_OURS = ["app.__main__", "app.cli", "app.preflight.run", "app.serve", "streaming.upload"]
_OF_THE_HUBS_CLIENT = ["filelock", "httpcore2", "httpx2", "tqdm.auto", "yaml"]
_TIMEOUT_S = 60.0


def coldstream(*words: str, environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with `environ` on top of this process's variables; nobody it started may be left."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("stdout", "stderr")]
        process = _context().Process(target=_run, args=(list(words), {**os.environ, **(environ or {})}, paths))
        process.start()
        try:
            process.join(_TIMEOUT_S)
            assert process.exitcode is not None, f"{words} did not end"
        finally:
            process.kill()
            process.join()
        assert children_of(process.pid) == []
        return subprocess.CompletedProcess(words, process.exitcode, *(path.read_text() for path in paths))


@functools.cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_OURS + _OF_THE_HUBS_CLIENT)
    return context


def _run(words: Sequence[str], environ: Mapping[str, str], paths: Sequence[Path]) -> None:
    """What `python -m app` does, in the forked process."""
    for number, path in enumerate(paths, start=1):
        with path.open("wb") as file:
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(environ)
    from app.__main__ import run

    sys.exit(run(words))
