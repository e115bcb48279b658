"""What can go wrong with one answer: plain values, each of which knows how to be played.

Takes the exchange that is to go wrong. Knows no schedule: whether and when is said elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol
from urllib.parse import urlencode

from tests.faults.blobs import Answer, Blobs, Request, refusal


class Wire(Protocol):
    """One connection, as the faults use it."""

    def send(self, data: bytes) -> None:
        """Send all of it."""

    def pause(self, seconds: float | None) -> None:
        """Do nothing for a while, None for ever; ends the exchange when the client hangs up."""

    def reset(self) -> None:
        """End the connection with RST; does not return."""

    def close(self) -> None:
        """End the connection with FIN; does not return."""

    def refuse(self, seconds: float) -> None:
        """Refuse new connections for a while."""


@dataclass(frozen=True)
class Exchange:
    """A request, what would answer it, and where to."""

    request: Request
    blobs: Blobs
    wire: Wire

    def answer(self) -> Answer:
        """The good one."""
        return self.blobs.answer(self.request)

    def send(self, answer: Answer) -> None:
        """All of an answer."""
        self.wire.send(answer.head + answer.body)

    def send_part(self, after_bytes: int | None) -> None:
        """Nothing (None), or the headers and so many bytes of the body, but never all of it."""
        if after_bytes is not None:
            answer = self.answer()
            self.wire.send(answer.head + answer.body[: min(after_bytes, len(answer.body) - 1)])


@dataclass(frozen=True)
class Fault:
    """None at all; the others follow."""

    def play(self, exchange: Exchange) -> None:
        """Answer."""
        exchange.send(exchange.answer())


@dataclass(frozen=True)
class Latency(Fault):
    """The answer begins late."""

    seconds: float

    def play(self, exchange: Exchange) -> None:
        exchange.wire.pause(self.seconds)
        exchange.send(exchange.answer())


@dataclass(frozen=True)
class Trickle(Fault):
    """So many bytes every so often, headers too: a narrow line, or with one byte a slow loris."""

    nbytes: int
    interval_s: float

    def play(self, exchange: Exchange) -> None:
        answer = exchange.answer()
        data = answer.head + answer.body
        for start in range(0, len(data), self.nbytes):
            exchange.wire.send(data[start : start + self.nbytes])
            exchange.wire.pause(self.interval_s)


@dataclass(frozen=True)
class Refusal(Fault):
    """An error status with Azure's XML."""

    status: int
    retry_after_s: int | None = None

    def play(self, exchange: Exchange) -> None:
        answer = refusal(self.status, self.retry_after_s)
        exchange.send(answer if exchange.request.method == "GET" else replace(answer, body=b""))


@dataclass(frozen=True)
class Redirect(Fault):
    """Somewhere else is asked instead, with the same query; nobody answers there."""

    def play(self, exchange: Exchange) -> None:
        target = f"http://127.0.0.1:9{exchange.request.path}?{urlencode(exchange.request.query, doseq=True)}"
        exchange.send(refusal(307).with_header("Location", target))


@dataclass(frozen=True)
class Echo(Fault):
    """An error status whose body repeats the request with every header, as proxies do that are to be debugged."""

    status: int

    def play(self, exchange: Exchange) -> None:
        request = exchange.request
        target = f"{request.path}?{urlencode(request.query, doseq=True)}"
        headers = "".join(f"{name}: {value}\n" for name, value in sorted(request.headers.items()))
        body = f"{headers}no answer to {request.method} {target}\n".encode()
        answer = refusal(self.status).with_header("Content-Type", "text/plain")
        exchange.send(replace(answer.with_header("Content-Length", str(len(body))), body=body))


@dataclass(frozen=True)
class Reset(Fault):
    """RST before the headers (None) or in the body."""

    after_bytes: int | None = None

    def play(self, exchange: Exchange) -> None:
        exchange.send_part(self.after_bytes)
        exchange.wire.reset()


@dataclass(frozen=True)
class Cut(Fault):
    """The body ends early, politely."""

    after_bytes: int | None = None

    def play(self, exchange: Exchange) -> None:
        exchange.send_part(self.after_bytes)
        exchange.wire.close()


@dataclass(frozen=True)
class Stall(Fault):
    """Nothing more comes, before the headers (None) or in the body, and the connection stays open."""

    after_bytes: int | None = None

    def play(self, exchange: Exchange) -> None:
        exchange.send_part(self.after_bytes)
        exchange.wire.pause(None)


@dataclass(frozen=True)
class FlipBit(Fault):
    """One bit of the body is another one; nothing but a digest can tell."""

    position: int

    def play(self, exchange: Exchange) -> None:
        answer = exchange.answer()
        body = bytearray(answer.body)
        if body and answer.status < 300:
            byte, bit = divmod(self.position % (len(body) * 8), 8)
            body[byte] ^= 1 << bit
        exchange.send(replace(answer, body=bytes(body)))


@dataclass(frozen=True)
class WrongRange(Fault):
    """Bytes beside those that were asked for, and a Content-Range that says so."""

    shift: int

    def play(self, exchange: Exchange) -> None:
        request, size = exchange.request, exchange.blobs.size_bytes(exchange.request)
        answer = exchange.answer()
        start = min(max(request.start + self.shift, 0), size - 1)
        end = min(start + request.end - request.start, size)
        exchange.send(exchange.blobs.part(request, start, end) if answer.status == 206 else answer)


@dataclass(frozen=True)
class ShortRange(Fault):
    """Fewer bytes than were asked for, with headers that agree: HTTP allows it."""

    missing_bytes: int

    def play(self, exchange: Exchange) -> None:
        request, answer = exchange.request, exchange.answer()
        end = max(request.start + 1, request.end - self.missing_bytes)
        exchange.send(exchange.blobs.part(request, request.start, end) if answer.status == 206 else answer)


@dataclass(frozen=True)
class Whole(Fault):
    """200 with all of the blob instead of 206 with the range."""

    def play(self, exchange: Exchange) -> None:
        headers = {name: value for name, value in exchange.request.headers.items() if not name.endswith("range")}
        exchange.send(exchange.blobs.answer(replace(exchange.request, headers=headers)))


@dataclass(frozen=True)
class WrongLength(Fault):
    """A Content-Length that is too large (then the connection closes) or too small (the rest is sent nevertheless)."""

    delta: int

    def play(self, exchange: Exchange) -> None:
        answer = exchange.answer()
        exchange.send(answer.with_header("Content-Length", str(max(0, len(answer.body) + self.delta))))
        exchange.wire.close()


@dataclass(frozen=True)
class Garbled(Fault):
    """A head that no server should send; one of `GARBLED_HEADS`."""

    head: str

    def play(self, exchange: Exchange) -> None:
        status, _, rest = exchange.answer().head.partition(b"\r\n")
        exchange.wire.send(status + b"\r\n" + GARBLED_HEADS[self.head] + rest + exchange.answer().body)
        exchange.wire.close()


@dataclass(frozen=True)
class Overwrite(Fault):
    """The shard is uploaded anew before the answer; the server refuses the old ETag, or does not know If-Match."""

    obeys_conditions: bool = True

    def play(self, exchange: Exchange) -> None:
        exchange.blobs.overwrite(exchange.request)
        exchange.send(exchange.blobs.answer(exchange.request, obeys_conditions=self.obeys_conditions))


@dataclass(frozen=True)
class Refuse(Fault):
    """Nobody listens for a while; the connection that asked ends with RST."""

    seconds: float

    def play(self, exchange: Exchange) -> None:
        exchange.wire.refuse(self.seconds)
        exchange.wire.reset()


# Heads that contradict themselves, or are none.
GARBLED_HEADS = {
    "two lengths": b"Content-Length: 7\r\n",
    "backward range": b"Content-Range: bytes 5-4/3\r\n",
    "unknown unit": b"Content-Range: lines 1-2\r\n",
    "two etags": b'ETag: "another"\r\n',
    "no date": b"Last-Modified: yesterday\r\n",
    "no colon": b"no colon\r\n",
    "control characters": b"\x00\x01\x02\r\n",
    "long": b"X-Long: " + b"x" * 200_000 + b"\r\n",
    "chunked": b"Transfer-Encoding: chunked\r\n",
}
