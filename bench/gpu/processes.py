"""Contenders as processes of their own: started, timed out, looked at, and gone before the next one starts.

Takes commands; knows no contender.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from bench.gpu.marks import RESULT_PREFIX
from tools.child import last_line

TIMEOUT_S = 240.0


class ContenderFailed(Exception):
    """A contender ended or hung before its first token; one line."""


@contextlib.contextmanager
def started(
    command: Sequence[str], *, log_path: Path, env: Mapping[str, str], stdout: int | IO[bytes] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command for the length of a `with` block, killed at its end or after TIMEOUT_S, with all it started.

    Nothing stands between this process and the command, so its exec time is the contender's own.
    """
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=stdout or log, stderr=log, env=env, process_group=0
        )
    timer = threading.Timer(TIMEOUT_S, _kill, [process])
    timer.start()
    try:
        yield process
    finally:
        timer.cancel()
        _kill(process)
        process.wait()
        for pipe in filter(None, (process.stdin, process.stdout)):
            pipe.close()


def run_rival(
    module: str, *arguments: str, log_path: Path, env: Mapping[str, str], look: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """One cold start of a rival's module: what it told (`bench.gpu.marks`), its memory, and what `look` saw at the end.

    Raises:
        ContenderFailed: It told nothing.
    """
    command = [sys.executable, "-m", module, *arguments]
    with started(command, log_path=log_path, env=env, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(RESULT_PREFIX.encode()):
                told: dict[str, Any] = json.loads(line.removeprefix(RESULT_PREFIX.encode()))
                return {**told, "peak_rss_mib": peak_rss_mib(process.pid), **look()}
    raise ContenderFailed(f"{module}: {last_line(log_path)}")


def peak_rss_mib(pid: int) -> float | None:
    """The most memory that a living process had resident; None where it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    return None


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
