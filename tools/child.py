"""A child process that never outlives the one that started it.

Takes a command, gives a running process whose output goes to a file. Knows nothing of what it runs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

# Asked for before the exec (the kernel keeps the request across it), so that a SIGKILL of the parent
# takes the child along; a preexec_fn would run Python between fork and exec of a threaded parent.
_TETHERED = (
    "import os, sys; from streaming.process import die_with_parent;"
    "die_with_parent(int(sys.argv[1])); os.execvp(sys.argv[2], sys.argv[2:])"
)


@contextlib.contextmanager
def running(
    command: Sequence[str], *, log_path: Path, env: Mapping[str, str] | None = None, grace_s: float = 0.0
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` for the length of a `with` block, then stop it and everything it started.

    Args:
        command: Program (looked up on PATH) and arguments.
        log_path: Where its stdout and stderr go.
        env: Its whole environment; None is this process's own.
        grace_s: How long it may take to end after SIGTERM; 0 kills it at once.
    """
    tethered = [sys.executable, "-c", _TETHERED, str(os.getpid()), *command]
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            tethered, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True
        )
    try:
        yield process
    finally:
        _stop(process, grace_s)


def last_line(log_path: Path) -> str:
    """The last line that is not empty of a child's output: what it said before it failed."""
    lines = log_path.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def _stop(process: subprocess.Popen[bytes], grace_s: float) -> None:
    if grace_s > 0:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    # The whole session: a child of a child that ignored its parent's end goes too.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
