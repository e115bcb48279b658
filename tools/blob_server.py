"""A folder over HTTP/1.1, with what a blob service has: ranges, ETags, conditions, and a limit on speed.

Takes a folder and the faults to play, gives a URL and a log of every request. In this process, one thread
per connection: for tests. Knows nothing of checkpoints.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import unquote, urlsplit

_PIECE_BYTES = 64 << 10
_RANGE = re.compile(r"bytes=(\d*)-(\d*)$")

EtagKind = Literal["strong", "weak", "none"]


@dataclass(frozen=True)
class BlobRequest:
    """One request as it was answered: bytes `[start, end)` of `path`; 0, 0 where no byte was due."""

    method: str
    path: str
    start: int
    end: int
    status: int


@dataclass(frozen=True)
class Fault:
    """What to do instead of a good answer.

    `status` answers with that status, and `body` and `headers` (which replace those that would be sent); `cut_after_bytes`
    closes the connection after so many bytes of the body (0: before the headers), `resets` does so with a reset instead of an
    end, and `stalls_s` waits before. `ignores_range` answers with the whole blob and 200.
    """

    status: int | None = None
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_after_bytes: int | None = None
    resets: bool = False
    stalls_s: float = 0.0
    ignores_range: bool = False


Hook = Callable[[BlobRequest], Fault | None]


class Throttle:
    """A limit on bytes per second that all connections share."""

    def __init__(self, bytes_per_s: float):
        self._bytes_per_s = bytes_per_s
        self._free_at_s = 0.0
        self._lock = threading.Lock()

    def wait(self, nbytes: int) -> None:
        """Return when `nbytes` more may be sent."""
        with self._lock:
            start_s = max(time.monotonic(), self._free_at_s)
            self._free_at_s = start_s + nbytes / self._bytes_per_s
            due_s = self._free_at_s
        time.sleep(max(0.0, due_s - time.monotonic()))


class BlobServer:
    """Serves `folder` at `url` for the length of a `with` block.

    Args:
        folder: What to serve; files are read anew for every request.
        bytes_per_s: The limit that all connections share; None is no limit.
        etag: "strong", "weak" (`W/"..."`) or "none".
        hook: Called with every request before it is answered, in the connection's thread: it may sleep,
            change files, or return a `Fault`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        bytes_per_s: float | None = None,
        etag: EtagKind = "strong",
        hook: Hook | None = None,
    ):
        self.folder = folder.resolve()
        self.throttle = Throttle(bytes_per_s) if bytes_per_s else None
        self.etag: EtagKind = etag
        self.hook = hook
        self.requests: list[BlobRequest] = []
        self._http = _HttpServer(self)
        # The poll interval bounds how long leaving the block takes.
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        """The folder's URL, without a closing slash."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> Self:
        """Start to answer."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Refuse new connections; open ones end with their client."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def etag_of(self, path: Path) -> str | None:
        """The ETag of a file as it is now."""
        stat = path.stat()
        tag = f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"'
        return {"strong": tag, "weak": f"W/{tag}", "none": None}[self.etag]


def parse_range(header: str | None, size_bytes: int) -> tuple[int, int] | None:
    """The half-open range that a Range header asks for, cut to the blob; None where none can be given.

    No header, or one that is not understood, asks for all (RFC 9110, 14.2).
    """
    match = _RANGE.match(header.strip()) if header else None
    if match is None or not (match[1] or match[2]):
        return 0, size_bytes
    if not match[1]:
        suffix_bytes = min(int(match[2]), size_bytes)
        return (size_bytes - suffix_bytes, size_bytes) if suffix_bytes else None
    start = int(match[1])
    end = min(int(match[2]) + 1, size_bytes) if match[2] else size_bytes
    return (start, end) if start < end else None


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, blobs: BlobServer):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.blobs = blobs

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a client that hangs up is a part of most tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _HttpServer

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class's name)
        """The log is `BlobServer.requests`."""

    def _answer(self, *, with_body: bool) -> None:
        path = self._file()
        hook = self.server.blobs.hook
        fault = (hook(self._resolved(path)) if hook else None) or Fault()
        # Resolved anew: the hook may have changed the file.
        request = self._resolved(path)
        if fault.status is not None:
            request = replace(request, start=0, end=0, status=fault.status)
        elif fault.ignores_range and path is not None and request.status == HTTPStatus.PARTIAL_CONTENT:
            request = replace(request, start=0, end=path.stat().st_size, status=HTTPStatus.OK)
        self.server.blobs.requests.append(request)
        if fault.cut_after_bytes == 0:
            self._hang_up(fault)
            return
        self._send_head(path, request, fault)
        if with_body and path is not None and request.end > request.start:
            self._send_body(path, request, fault)

    def _hang_up(self, fault: Fault) -> None:
        time.sleep(fault.stalls_s)
        self.close_connection = True
        if fault.resets:
            # To linger for no time is to reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())

    def _file(self) -> Path | None:
        path = (self.server.blobs.folder / unquote(urlsplit(self.path).path).lstrip("/")).resolve()
        return path if path.is_relative_to(self.server.blobs.folder) else None

    def _resolved(self, path: Path | None) -> BlobRequest:
        status, start, end = self._status_and_range(path)
        return BlobRequest(self.command, urlsplit(self.path).path, start, end, status)

    def _status_and_range(self, path: Path | None) -> tuple[int, int, int]:
        if path is None or not path.is_file():
            return HTTPStatus.NOT_FOUND, 0, 0
        wanted = self.headers.get("If-Match")
        # If-Match compares strongly: a weak tag never matches.
        if wanted not in (None, "*") and (self.server.blobs.etag != "strong" or wanted != self._etag(path)):
            return HTTPStatus.PRECONDITION_FAILED, 0, 0
        asked = parse_range(self.headers.get("Range"), path.stat().st_size)
        if asked is None:
            return HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, 0, 0
        return (HTTPStatus.PARTIAL_CONTENT if self.headers.get("Range") else HTTPStatus.OK), *asked

    def _etag(self, path: Path) -> str | None:
        return self.server.blobs.etag_of(path)

    def _send_head(self, path: Path | None, request: BlobRequest, fault: Fault) -> None:
        headers = {
            "Content-Length": str(len(fault.body) or request.end - request.start),
            "Accept-Ranges": "bytes",
            **(self._file_headers(path, request) if path is not None and path.is_file() else {}),
            **fault.headers,
        }
        self.send_response(request.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(fault.body)

    def _file_headers(self, path: Path, request: BlobRequest) -> dict[str, str]:
        stat, etag = path.stat(), self._etag(path)
        headers = {"Last-Modified": self.date_time_string(int(stat.st_mtime))}
        if etag is not None:
            headers["ETag"] = etag
        if request.status == HTTPStatus.PARTIAL_CONTENT:
            # Inclusive: HTTP is spoken here.
            headers["Content-Range"] = f"bytes {request.start}-{request.end - 1}/{stat.st_size}"
        elif request.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            headers["Content-Range"] = f"bytes */{stat.st_size}"
        return headers

    def _send_body(self, path: Path, request: BlobRequest, fault: Fault) -> None:
        cut_after_bytes = fault.cut_after_bytes
        end = request.end if cut_after_bytes is None else min(request.end, request.start + cut_after_bytes)
        throttle = self.server.blobs.throttle
        with path.open("rb") as file:
            for start in range(request.start, end, _PIECE_BYTES):
                nbytes = min(_PIECE_BYTES, end - start)
                if throttle:
                    throttle.wait(nbytes)
                self.connection.sendfile(file, start, nbytes)
        if end < request.end:
            self._hang_up(fault)
