"""One `coldstream serve` to be measured: started, asked, and gone without a trace.

Takes the words of its command line. Nothing of it outlives the `with` block, nor this process.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from app.errors import CommandError
from app.settings.table import variable_of
from streaming.process import die_with_parent

_HOST = "127.0.0.1"
_POLL_S = 0.02
_GRACE_S = 30.0
_PATIENCE_S = 600.0


class ServerFailed(CommandError):
    """A server that was to be measured ended; the exit code is its own."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Server:
    """One that runs. `headers` go with every question."""

    process: subprocess.Popen[bytes]
    port: int
    log: IO[bytes]
    headers: dict[str, str]

    def wait_ready(self) -> None:
        """Return once /health says 200.

        Raises:
            ServerFailed: It ended instead.
        """
        while self._health() != http.HTTPStatus.OK:
            if self.process.poll() is not None:
                raise self._failed()
            time.sleep(_POLL_S)

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The JSON of one answer.

        Raises:
            ServerFailed: It is not 200, or there is none.
        """
        try:
            status, data = self._exchange(method, path, body)
        except (OSError, http.client.HTTPException) as error:
            if self.process.poll() is not None:
                raise self._failed() from error
            raise ServerFailed(f"{method} {path}: no answer: {error}", 6) from error
        if status != http.HTTPStatus.OK:
            raise ServerFailed(f"{method} {path}: {status}: {data.decode(errors='replace')[:300]}", 6)
        answer: dict[str, Any] = json.loads(data)
        return answer

    def _health(self) -> int | None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self._exchange("GET", "/health", None)[0]
        return None

    def _exchange(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(_HOST, self.port, timeout=_PATIENCE_S)
        with contextlib.closing(connection):
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"content-type": "application/json", **self.headers})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def _failed(self) -> ServerFailed:
        """What it said last, with its exit code; of one that was killed, 6."""
        self.log.seek(0)
        code = self.process.returncode
        return ServerFailed(reason(self.log.read().decode(errors="replace")), code if code > 0 else 6)


@contextlib.contextmanager
def serving(words: Sequence[str], environ: Mapping[str, str]) -> Iterator[Server]:
    """Run `coldstream` with `words` on a free port of the loopback address for the length of a `with` block.

    It has a key of its own, so that nobody else on the machine disturbs a measurement; a command line would show it to them.
    """
    port, key = _free_port(), secrets.token_hex()
    command = [sys.executable, "-P", "-m", "app", *words, f"--host={_HOST}", f"--port={port}", "--log-format=text"]
    headers = {"authorization": f"Bearer {key}"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            env={**environ, variable_of("--api-key"): key},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            # Survives the exec; a process between, that asked for it, would be a part of the cold start.
            preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509 - there is one thread
        )
        try:
            yield Server(process, port, log, headers)
        finally:
            _end(process)


def reason(log: str) -> str:
    """The line with which a server's log says why it failed."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for line in reversed(lines):
        if line.startswith("coldstream: "):
            return line.removeprefix("coldstream: ")
        if " ERROR " in line:
            return line.partition(" ERROR ")[2].partition(": ")[2]
    return lines[-1] if lines else "the server ended without a word"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop it gently, then everything of its session; return when their memory is free."""
    try:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
    finally:  # also when a second Ctrl-C came
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        while _alive(process.pid):
            time.sleep(_POLL_S)


def _alive(session: int) -> bool:
    """Whether a process of this session is no zombie."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _parent, _group, owner = stat.read_text(errors="replace").rpartition(")")[2].split()[:4]
            if int(owner) == session and state not in "ZX":
                return True
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port
