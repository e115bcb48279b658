"""A child process with a socket to it. Standard library only: it is used before anything heavy is imported.

Takes a module to run; knows nothing of what the child does or says.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

_GOODBYE_S = 10.0


@dataclass(frozen=True)
class Child:
    """A running process and our end of its socket."""

    module: str
    process: subprocess.Popen[bytes]
    sock: socket.socket

    def end(self) -> None:
        """Kill it, if it has not ended; it holds nothing that it would have to save."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)

    def kill(self) -> None:
        """Kill it and wait until it is gone; one that the kernel does not let go is left to it."""
        self.end()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_GOODBYE_S)


def spawn(module: str, environ: Mapping[str, str], *arguments: str) -> Child:
    """Start `python -P -m module FD PARENT_PID ARGUMENTS`; its socket is the only descriptor that it inherits.

    -P keeps the working directory off its path: a folder named `app` there must not become our code.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(theirs.fileno()), str(os.getpid()), *arguments],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=dict(environ),
        )
    return Child(module, process, ours)
