"""A source of a fixed rate: the loopback device shaped by `tc`, or a relay that paces where tc cannot.

Takes a rate in Mbit/s and a port, gives the port to ask instead. nginx's own limit_rate would not do: it counts
whole seconds, so that every request's first second's worth comes at once. Knows no loader.
`python -m bench.gpu.landing_shaped PORT UPSTREAM_PORT MBIT` is the relay.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tools.child import running
from tools.ports import free_port

_HOST = "127.0.0.1"
_PIECE_BYTES = 256 << 10
# What a sender that slept too long may catch up on.
_CREDIT_S = 0.01
_BURST_S = 0.01
_MIN_BURST_BYTES = 1 << 20
# All lanes' windows fit: nothing is dropped, so nothing is sent twice.
_QUEUE_BYTES = 1 << 28


@contextlib.contextmanager
def shaped(ports: tuple[int, int], mbit: float, log_dir: Path) -> Iterator[tuple[int, int]]:
    """The ports at which `ports` are to be had at `mbit` Mbit/s in all, for the length of a `with` block."""
    obstacle = _shape(mbit)
    if not obstacle:
        try:
            yield ports
        finally:
            _tc("qdisc", "del", "dev", "lo", "root")
        return
    print(f"no tc ({obstacle}): a relay paces instead", flush=True)
    with _relay(ports[0], mbit, log_dir) as plain_port, _relay(ports[1], mbit, log_dir) as tls_port:
        yield plain_port, tls_port


def _shape(mbit: float) -> str:
    """Shape the loopback device; why not, if that cannot be."""
    if shutil.which("tc") is None:
        return "it is not installed"
    if " noqueue " not in _tc("qdisc", "show", "dev", "lo").stdout:
        return "the loopback device has a queueing discipline already"
    burst_bytes = max(_MIN_BURST_BYTES, int(mbit * 125_000 * _BURST_S))
    rate = ("rate", f"{mbit:g}mbit", "burst", str(burst_bytes), "limit", str(_QUEUE_BYTES))
    done = _tc("qdisc", "add", "dev", "lo", "root", "tbf", *rate)
    return " ".join(done.stderr.split()) or "it refused" if done.returncode else ""


def _tc(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["tc", *arguments], capture_output=True, text=True, check=False)


@contextlib.contextmanager
def _relay(upstream_port: int, mbit: float, log_dir: Path) -> Iterator[int]:
    port = free_port()
    command = [sys.executable, "-m", "bench.gpu.landing_shaped", str(port), str(upstream_port), str(mbit)]
    with running(command, log_path=log_dir / f"relay-{upstream_port}.log"):
        deadline_s = time.monotonic() + 10
        while time.monotonic() < deadline_s:
            with contextlib.suppress(OSError), socket.create_connection((_HOST, port), timeout=1):
                break
            time.sleep(0.02)
        yield port


class Pace:
    """Leave to send, so that all who ask share one rate."""

    def __init__(self, bytes_per_s: float):
        self._bytes_per_s = bytes_per_s
        self._lock = threading.Lock()
        self._next_s = time.monotonic()

    def take(self, nbytes: int) -> None:
        """Return when these bytes may go."""
        with self._lock:
            due_s = max(self._next_s, time.monotonic() - _CREDIT_S)
            self._next_s = due_s + nbytes / self._bytes_per_s
        if (wait_s := due_s - time.monotonic()) > 0:
            time.sleep(wait_s)


def relay(port: int, upstream_port: int, bytes_per_s: float) -> None:
    """Pass connections on for ever; what comes back is paced."""
    pace = Pace(bytes_per_s)
    with socket.create_server((_HOST, port), backlog=256) as listener:
        while True:
            client, _ = listener.accept()
            upstream = socket.create_connection((_HOST, upstream_port))
            for from_, to, pacer in ((client, upstream, None), (upstream, client, pace)):
                threading.Thread(target=_pass_on, args=(from_, to, pacer), daemon=True).start()


def _pass_on(source: socket.socket, sink: socket.socket, pace: Pace | None) -> None:
    buffer = memoryview(bytearray(_PIECE_BYTES))
    with contextlib.suppress(OSError):
        while nbytes := source.recv_into(buffer):
            if pace:
                pace.take(nbytes)
            sink.sendall(buffer[:nbytes])
    # The other direction ends, too: a client that is gone wants nothing more.
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    relay(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) * 125_000)
