"""A blob server that breaks its answers as a schedule says, over raw sockets: http.server is too well-behaved.

Takes a folder and a schedule, gives a URL and a log of every request. One thread per connection, all of them and every
socket gone after the `with` block. Knows neither checkpoints nor how faults are chosen.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

from tests.faults.blobs import Blobs, Request, parse_head
from tests.faults.faults import Exchange, Fault, Refusal
from tools.blob_server import Throttle

_MOST_CONNECTIONS = 512
_MOST_HEAD_BYTES = 64 << 10
_PIECE_BYTES = 16 << 10
_LINGER_ZERO = struct.pack("ii", 1, 0)

# Which fault a request meets; called from the connections' threads, one at a time.
Schedule = Callable[[Request], Fault]


def faultless(_request: Request) -> Fault:
    """Nothing goes wrong."""
    return Fault()


@dataclass(frozen=True)
class Logged:
    """One request: bytes `[start, end)` were asked for at `time_s` (monotonic) and met this fault."""

    method: str
    name: str
    start: int
    end: int
    time_s: float
    fault: Fault


class _Ended(Exception):
    """The connection is over."""


class FaultServer:
    """Serves a folder's files for the length of a `with` block.

    Args:
        folder: What to serve, read once.
        schedule: What each request meets.
        mount: The path under which the files are: "account/container/prefix" makes it a blob service.
        sas: The `sig` that every request must carry.
        bytes_per_s: The bandwidth that all connections share.
        requests_per_s: How many requests are answered; those beyond get 503.
    """

    def __init__(
        self,
        folder: Path,
        schedule: Schedule = faultless,
        *,
        mount: str = "",
        sas: str | None = None,
        bytes_per_s: float | None = None,
        requests_per_s: float | None = None,
    ):
        self.blobs = Blobs(folder, mount=mount, sas=sas)
        self.requests: list[Logged] = []
        self.throttle = Throttle(bytes_per_s) if bytes_per_s else None
        self._rate = _Rate(requests_per_s) if requests_per_s else None
        self._schedule = schedule
        self._mount = mount
        self._lock = threading.Lock()
        self._connections: dict[threading.Thread, socket.socket] = {}
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._port: int = self._listener.getsockname()[1]
        self._refused_until_s = 0.0
        self._closing = threading.Event()
        self._acceptor = threading.Thread(target=self._accept, name="fault-server", daemon=True)

    @property
    def url(self) -> str:
        """Where the files are, without a closing slash."""
        return f"http://127.0.0.1:{self._port}/{self._mount}".rstrip("/")

    @property
    def account_url(self) -> str:
        """The blob service's endpoint, if `mount` is one's path."""
        return f"http://127.0.0.1:{self._port}/{self._mount.partition('/')[0]}"

    @property
    def open_connections(self) -> int:
        """How many clients hold one now."""
        with self._lock:
            return len(self._connections)

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End every connection and wait for its thread."""
        self._closing.set()
        self._acceptor.join()
        self._listener.close()
        with self._lock:
            left = dict(self._connections)
        for connection in left.values():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in left:
            thread.join()

    def heal(self) -> None:
        """Let nothing go wrong from now on; what was overwritten stays so."""
        with self._lock:
            self._schedule = faultless

    def refuse(self, seconds: float) -> None:
        """Let nobody connect for a while; the port stays ours."""
        with self._lock:
            self._refused_until_s = time.monotonic() + seconds

    def meet(self, request: Request) -> Fault:
        """Log a request and say what it meets."""
        with self._lock:
            over = self._rate is not None and not self._rate.admits()
            fault = Refusal(503) if over else self._schedule(request)
            self.requests.append(
                Logged(request.method, request.name, request.start, request.end, time.monotonic(), fault)
            )
        return fault

    def _accept(self) -> None:
        while not self._closing.is_set():
            if time.monotonic() < self._refused_until_s:
                self._be_away()
            elif select.select([self._listener], [], [], 0.01)[0]:
                with contextlib.suppress(OSError):
                    self._take(self._listener.accept()[0])

    def _be_away(self) -> None:
        """Bound but not listening: the kernel refuses connections, and nobody else gets the port."""
        self._listener.close()
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", self._port))
        self._closing.wait(self._refused_until_s - time.monotonic())
        self._listener.listen(256)

    def _take(self, connection: socket.socket) -> None:
        with self._lock:
            if len(self._connections) >= _MOST_CONNECTIONS:
                connection.close()
                return
            thread = threading.Thread(target=self._serve, args=(connection,), name="fault-connection", daemon=True)
            self._connections[thread] = connection
        thread.start()

    def _serve(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire = _Wire(connection, self)
        try:
            while not self._closing.is_set():
                request = self.blobs.resolve(parse_head(wire.read_head()))
                self.meet(request).play(Exchange(request, self.blobs, wire))
        except (_Ended, OSError):
            pass
        finally:
            connection.close()
            with self._lock:
                del self._connections[threading.current_thread()]


class _Wire:
    """One connection, and what faults do to it."""

    def __init__(self, connection: socket.socket, server: FaultServer):
        self._connection = connection
        self._server = server
        self._hung_up = select.poll()
        self._hung_up.register(connection, select.POLLRDHUP | select.POLLHUP | select.POLLERR)

    def read_head(self) -> bytes:
        """One request, up to the empty line."""
        head = b""
        while b"\r\n\r\n" not in head:
            piece = self._connection.recv(_MOST_HEAD_BYTES)
            head += piece
            if not piece or len(head) > _MOST_HEAD_BYTES:
                raise _Ended
        return head.partition(b"\r\n\r\n")[0]

    def send(self, data: bytes) -> None:
        for start in range(0, len(data), _PIECE_BYTES):
            piece = data[start : start + _PIECE_BYTES]
            if self._server.throttle:
                self._server.throttle.wait(len(piece))
            self._connection.sendall(piece)

    def pause(self, seconds: float | None) -> None:
        if self._hung_up.poll(None if seconds is None else seconds * 1000):
            raise _Ended

    def reset(self) -> NoReturn:
        # Without lingering, closing drops what is unsent and sends RST.
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        raise _Ended

    def close(self) -> NoReturn:
        raise _Ended

    def refuse(self, seconds: float) -> None:
        self._server.refuse(seconds)


class _Rate:
    """A bucket of one second's requests."""

    def __init__(self, per_s: float):
        self._per_s = per_s
        self._left = per_s
        self._filled_s = time.monotonic()

    def admits(self) -> bool:
        now_s = time.monotonic()
        self._left = min(self._per_s, self._left + (now_s - self._filled_s) * self._per_s)
        self._filled_s = now_s
        if self._left < 1:
            return False
        self._left -= 1
        return True
