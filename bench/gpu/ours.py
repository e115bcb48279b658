"""One cold start of `coldstream serve`, asked as a load balancer and its first client ask.

Takes a URI and a device, gives the time from exec to the first token's answer over HTTP, and the ledger.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bench.gpu.processes import ContenderFailed, peak_rss_mib, started
from streaming.clock import boottime_s, exec_time_s
from tools.child import last_line
from tools.ports import free_port

_PERIOD_S = 0.01
_REQUEST = b"GET /health HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"


def serve_once(
    uri: str,
    flags: Sequence[str],
    *,
    checkpoint: Path,
    prompt: Sequence[int],
    log_path: Path,
    env: Mapping[str, str],
    look: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
    """Start, wait for /health, ask for one token.

    Raises:
        ContenderFailed: It ended before that, or answered no 200.
    """
    port = free_port()
    command = [sys.executable, "-m", "app", "serve", uri, "--host", "127.0.0.1", "--port", str(port)]
    with started([*command, "--served-model-name", "m", *flags], log_path=log_path, env=env) as process:
        exec_s = exec_time_s(process.pid)
        loader_peak_mib = _wait_until_ready(process, port, log_path)
        ready_s = boottime_s() - exec_s
        body = {"model": "m", "prompt": list(prompt), "max_tokens": 1, "temperature": 0}
        answer = _ask(port, "POST", "/v1/completions", body)
        seconds = boottime_s() - exec_s
        peaks_mib = {
            "loader": loader_peak_mib,
            "server": peak_rss_mib(process.pid),
            "engine": _engine_peak_mib(process.pid),
        }
        seen = look()
        ledger = _ask(port, "GET", "/startupz")
    text = answer["choices"][0]["text"]
    return {
        "seconds": round(seconds, 4),
        "token_id": Tokenizer.from_file(str(checkpoint / "tokenizer.json")).token_to_id(text),
        "phases": ledger["phases"],
        "milestones": {**ledger["milestones"], "ready_seen": round(ready_s, 4)},
        # Their peaks were not at the same time: the sum is a bound.
        "peak_rss_mib": sum(filter(None, peaks_mib.values())),
        "peaks_rss_mib": peaks_mib,
        **seen,
    }


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log_path: Path) -> float | None:
    """Return once /health is 200, with the loader's peak memory as far as it was seen."""
    peak_mib: float | None = None
    loader: int | None = None
    polls = 0
    while not _is_ready(port):
        if process.poll() is not None:
            raise ContenderFailed(f"coldstream ended before it was ready: {last_line(log_path)}")
        # The loader ends before the server is ready, so its peak is read as it goes.
        if polls % 10 == 0:
            loader = loader or _child_of(process.pid, b"streaming")
            peak_mib = (peak_rss_mib(loader) if loader else None) or peak_mib
        polls += 1
        time.sleep(_PERIOD_S)
    return peak_mib


def _is_ready(port: int) -> bool:
    """Whether /health says 200, asked as cheaply as can be: the server is starting on these cores."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(_REQUEST)
        return connection.recv(64).startswith(b"HTTP/1.1 200")
    return False


def _engine_peak_mib(server_pid: int) -> float | None:
    engine = _child_of(server_pid, b"app.engine")
    return peak_rss_mib(engine) if engine else None


def _child_of(server_pid: int, module: bytes) -> int | None:
    with contextlib.suppress(OSError):
        for pid in Path(f"/proc/{server_pid}/task/{server_pid}/children").read_text().split():
            if module in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                return int(pid)
    return None


def _ask(port: int, method: str, path: str, body: object = None) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, json.dumps(body) if body else None, {"content-type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
    if answer.status != http.HTTPStatus.OK:
        raise ContenderFailed(f"coldstream answered {path} with {answer.status}: {content[:300]!r}")
    result: dict[str, Any] = json.loads(content)
    return result
