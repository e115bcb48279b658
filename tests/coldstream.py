"""A whole server as a user starts it, driven and watched by a test."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil

from streaming.options import PipelineOptions
from tools.blob_server import BlobServer
from tools.child import running
from tools.ports import free_port

ROOT = Path(__file__).parents[1]
STARTUP = ("starting", "loading", "warming", "ready")
# Threads that wait for each other take many times as long where a core is busy with something else, such as the test.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


class Server:
    """A `coldstream serve` that runs; its family is loader and engine."""

    def __init__(self, pid: int, port: int, log_path: Path):
        self.pid = pid
        self.url = f"http://127.0.0.1:{port}"
        self.log_path = log_path
        self.client = httpx.Client(base_url=self.url, timeout=30)

    def log(self) -> str:
        """Everything that it and its children wrote."""
        return self.log_path.read_text(errors="replace")

    def child(self, module: str) -> psutil.Process:
        """The newest running child that runs this module; waits for it to exist."""
        return wait_for(lambda: next((p for p in reversed(self.family()) if runs(p, module)), None))

    def family(self) -> list[psutil.Process]:
        """Its descendants, oldest first, zombies left out."""
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.pid).children(recursive=True)
            return sorted((child for child in children if alive(child)), key=lambda child: child.pid)
        return []

    def health(self) -> tuple[int, dict[str, Any]]:
        """Status and body of /health."""
        answer = self.client.get("/health")
        return answer.status_code, answer.json()

    def state(self) -> str | None:
        """What /health says it is; None while nobody answers."""
        with contextlib.suppress(httpx.TransportError):
            return str(self.health()[1]["state"])
        return None

    def reach(self, state: str, timeout_s: float = 60) -> None:
        """Return once it is in this state of its startup, or past it."""
        wait_for(lambda: STARTUP.index(self.state() or "starting") >= STARTUP.index(state), timeout_s)

    def wait_ready(self, timeout_s: float = 90) -> None:
        """Return once /health says 200; fail early if the server ends."""

        def ready() -> bool:
            assert psutil.pid_exists(self.pid), self.log()
            with contextlib.suppress(httpx.TransportError):
                return self.health()[0] == 200
            return False

        wait_for(ready, timeout_s)

    def complete(self, prompt: str | list[int], **parameters: Any) -> dict[str, Any]:
        """One completion by POST /v1/completions."""
        body = {"model": "m", "prompt": prompt, "temperature": 0, **parameters}
        answer = self.client.post(
            "/v1/completions", json=body, timeout=300
        )  # dozens of prompts at once take their time
        assert answer.status_code == 200, answer.text
        result: dict[str, Any] = answer.json()
        return result


@contextlib.contextmanager
def serving(
    uri: str, *flags: str, log_path: Path, environ: Mapping[str, str] | None = None, grace_s: float = 10
) -> Iterator[Server]:
    """Run `coldstream serve URI` on a free port for the length of a `with` block; its engine computes in one thread."""
    port = free_port()
    command = serve_command(uri, *flags, port=port)
    environ = {**ONE_THREAD, **os.environ, **(environ or {})}
    with running(command, log_path=log_path, env=environ, grace_s=grace_s) as process:
        server = Server(process.pid, port, log_path)
        with server.client:
            yield server


def serve_command(uri: str, *flags: str, port: int) -> list[str]:
    """The words that start a server on a port of this machine, whose model is named m."""
    command = [sys.executable, "-P", "-m", "app", "serve", *filter(None, [uri])]
    command += ["--port", str(port), "--host", "127.0.0.1", *flags]
    return command if "--served-model-name" in flags else [*command, "--served-model-name", "m"]


def wait_for(condition: Any, timeout_s: float = 30) -> Any:
    """The first true value of `condition`, polled every 20 ms."""
    deadline_s = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.02)
    return value


def weight_bytes(source: BlobServer) -> int:
    """Bytes of shard data that were asked for, the speculative header reads left out."""
    return sum(r.end - r.start for r in source.requests if r.path.endswith(".safetensors") and r.start > 0)


def most_under_way(lanes: int) -> int:
    """How many chunks may have been asked for without having landed: one of each lane and lander, and one between them."""
    return lanes + PipelineOptions(lanes=lanes).landers + 1


def runs(process: psutil.Process, module: str) -> bool:
    """Whether a process runs `python -m module`."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return re.search(rf"-m {re.escape(module)}( |$)", " ".join(process.cmdline())) is not None
    return False


def children_of(parent_pid: int) -> list[int]:
    """Loader and engine processes that were told this parent's pid, whoever is their parent by now."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if str(parent_pid).encode() in command and {b"streaming", b"app.engine"} & set(command):
                found.append(int(folder.name))
    return found


def alive(process: psutil.Process) -> bool:
    """Whether a process runs and is no zombie."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False
