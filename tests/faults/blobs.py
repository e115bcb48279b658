"""Blobs in memory and the good answer to every request for them, in the words of HTTP and of Azure Blob storage.

Takes a folder once, gives answers as values. Knows no socket and no fault.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from email.utils import formatdate
from functools import cached_property
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from streaming.checkpoint import LENGTH_BYTES
from tools.blob_server import parse_range

_BEGAN = 1_700_000_000
_CODES = {
    307: "TemporaryRedirect",
    403: "AuthorizationFailure",
    404: "BlobNotFound",
    412: "ConditionNotMet",
    416: "InvalidRange",
    429: "TooManyRequests",
    500: "InternalError",
    502: "BadGateway",
    503: "ServerBusy",
}


@dataclass(frozen=True)
class Request:
    """One request's head; `start` and `end` are the half-open range that it asks for, 0 and 0 where there is none."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    start: int = 0
    end: int = 0

    @property
    def name(self) -> str:
        """The blob's base name."""
        return self.path.rpartition("/")[2]

    @property
    def goal(self) -> str:
        """What the range ends with, as it is asked for: a read that goes on where it broke off has the same."""
        return (_range_header(self) or "").rpartition("-")[2]


@dataclass(frozen=True)
class Answer:
    """What a good server would send."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def head(self) -> bytes:
        """Status line and headers, with the empty line that ends them."""
        lines = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}"]
        return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in self.headers), "", ""]).encode()

    def with_header(self, name: str, value: str) -> Answer:
        """The same answer with another value of this header."""
        kept = tuple(pair for pair in self.headers if pair[0] != name)
        return replace(self, headers=(*kept, (name, value)))


@dataclass(frozen=True)
class _Blob:
    data: bytes
    version: int = 0

    @cached_property
    def etag(self) -> str:
        return f'"0x8DC{self.version:012X}"'

    @cached_property
    def modified(self) -> str:
        return formatdate(_BEGAN + self.version, usegmt=True)

    def overwritten(self) -> _Blob:
        """Another checkpoint of the same shape: a safetensors file whose weights are all other ones."""
        data_at = LENGTH_BYTES + int.from_bytes(self.data[:LENGTH_BYTES], "little")
        return _Blob(self.data[:data_at] + invert(self.data[data_at:]), self.version + 1)


def invert(data: bytes) -> bytes:
    """Every bit turned over."""
    return bytes(byte ^ 0xFF for byte in data)


def parse_head(head: bytes) -> Request:
    """A request's head as it was read; no range is known yet."""
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ", 2)
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    url = urlsplit(target)
    return Request(method, unquote(url.path), parse_qs(url.query, keep_blank_values=True), headers)


class Blobs:
    """A folder's files under `/MOUNT/`; with `sas` only for who sends this signature."""

    def __init__(self, folder: Path, *, mount: str = "", sas: str | None = None):
        self._mount = mount.strip("/")
        self._sas = sas
        self._lock = threading.Lock()
        self._blobs = {path.name: _Blob(path.read_bytes()) for path in folder.iterdir() if path.is_file()}

    def resolve(self, request: Request) -> Request:
        """The request with the range that it asks for, within the blob."""
        blob = self._blobs.get(self._key(request))
        asked = None if blob is None else parse_range(_range_header(request), len(blob.data))
        return replace(request, start=asked[0], end=asked[1]) if asked else request

    def overwrite(self, request: Request) -> bool:
        """Upload other weights over a shard; False if the request is for no shard."""
        key = self._key(request)
        with self._lock:
            if key in self._blobs and key.endswith(".safetensors"):
                self._blobs[key] = self._blobs[key].overwritten()
                return True
        return False

    def answer(self, request: Request, *, obeys_conditions: bool = True) -> Answer:
        """The good answer; `obeys_conditions` is False for a server that does not know If-Match."""
        if self._sas is not None and request.query.get("sig") != [self._sas]:
            return refusal(403)
        if request.query.get("comp") == ["list"]:
            return _answer(200, self._listing(request).encode(), ("Content-Type", "application/xml"))
        blob = self._blobs.get(self._key(request))
        if blob is None:
            return refusal(404)
        wanted = request.headers.get("if-match", "*")
        if obeys_conditions and wanted not in ("*", blob.etag):
            return refusal(412)
        asked = parse_range(_range_header(request), len(blob.data))
        if asked is None:
            return refusal(416).with_header("Content-Range", f"bytes */{len(blob.data)}")
        return self._part(blob, *asked, partial=bool(_range_header(request)), with_body=request.method == "GET")

    def part(self, request: Request, start: int, end: int) -> Answer:
        """Bytes `[start, end)` of the requested blob, whatever was asked for."""
        return self._part(self._blobs[self._key(request)], start, end, partial=True, with_body=True)

    def size_bytes(self, request: Request) -> int:
        """The requested blob's size; 0 where there is none."""
        blob = self._blobs.get(self._key(request))
        return len(blob.data) if blob else 0

    def _key(self, request: Request) -> str:
        return request.path.strip("/").removeprefix(self._mount).strip("/")

    def _part(self, blob: _Blob, start: int, end: int, *, partial: bool, with_body: bool) -> Answer:
        body = blob.data[start:end]
        # Inclusive: HTTP is spoken here.
        where = [("Content-Range", f"bytes {start}-{end - 1}/{len(blob.data)}")] if partial else []
        version = [("ETag", blob.etag), ("Last-Modified", blob.modified), ("x-ms-version", "2023-11-03")]
        whole = _answer(206 if partial else 200, body, *where, *version)
        return whole if with_body else replace(whole, body=b"")

    def _listing(self, request: Request) -> str:
        prefix = "".join(request.query.get("prefix", []))
        items = "".join(
            f"<Blob><Name>{escape(prefix + name)}</Name><Properties><Last-Modified>{blob.modified}</Last-Modified>"
            f"<Etag>{escape(blob.etag)}</Etag><Content-Length>{len(blob.data)}</Content-Length>"
            "<Content-Type>application/octet-stream</Content-Type><BlobType>BlockBlob</BlobType></Properties></Blob>"
            for name, blob in sorted(self._blobs.items())
        )
        return (
            '<?xml version="1.0" encoding="utf-8"?><EnumerationResults ContainerName="models">'
            f"<Blobs>{items}</Blobs><NextMarker /></EnumerationResults>"
        )


def refusal(status: int, retry_after_s: int | None = None) -> Answer:
    """An error as Blob storage words it: a code, XML of several lines and an id for its support."""
    code = _CODES[status]
    body = f'<?xml version="1.0" encoding="utf-8"?>\n<Error><Code>{code}</Code>\n<Message>{code}.\n</Message></Error>'
    wait = [("Retry-After", str(retry_after_s))] if retry_after_s is not None else []
    marks = [("x-ms-request-id", "5ad00000-001e-0000-0000-000000000000"), ("x-ms-error-code", code)]
    return _answer(status, body.encode(), ("Content-Type", "application/xml"), *marks, *wait)


def _answer(status: int, body: bytes, *headers: tuple[str, str]) -> Answer:
    return Answer(status, (("Content-Length", str(len(body))), ("Accept-Ranges", "bytes"), *headers), body)


def _range_header(request: Request) -> str | None:
    return request.headers.get("x-ms-range") or request.headers.get("range")
