"""Framed messages and file descriptors over a Unix stream socket.

A frame is a 4-byte big-endian length and a msgpack body; descriptors ride on its first byte. Takes and
gives typed messages; knows nothing of what they mean nor of which process is at the other end.
"""

from __future__ import annotations

import array
import os
import select
import socket
import struct
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import msgspec

T = TypeVar("T")

_LENGTH = struct.Struct(">I")
# Far above the largest honest message (a 30 MB tokenizer.json); a wild length is a broken peer.
_MAX_FRAME_BYTES = 1 << 30
# The kernel's own limit (SCM_MAX_FD).
MAX_FDS = 253
_FD_BYTES = array.array("i").itemsize

_encoder = msgspec.msgpack.Encoder()


class ConnectionClosed(Exception):
    """The other process closed its end, or died."""


def encode(message: msgspec.Struct) -> bytes:
    """One frame, ready to be written."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


def send_some(sock: socket.socket, frame: memoryview, fds: Sequence[int]) -> int:
    """Write as much of `frame` as the socket takes; `fds` ride on its first byte.

    Raises:
        BlockingIOError: The socket is non-blocking and full.
        ConnectionClosed: Nobody reads any more.
    """
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    try:
        return sock.sendmsg([frame], rights)
    except (BrokenPipeError, ConnectionResetError) as error:
        raise ConnectionClosed from error


class Connection(Generic[T]):
    """One end of a socket pair that carries messages of type `T` towards us.

    Args:
        sock: A Unix stream socket; this object owns it.
        incoming: The union of message types to accept (a type for msgspec's decoder).
    """

    def __init__(self, sock: socket.socket, incoming: Any):
        self.sock = sock
        self._decoder = msgspec.msgpack.Decoder(incoming)
        self._frame = bytearray()
        self._frame_bytes: int | None = None
        self._fds: list[int] = []

    def send(self, message: msgspec.Struct, fds: Sequence[int] = ()) -> None:
        """Write one message, blocking until the kernel has taken all of it.

        Raises:
            ConnectionClosed: Nobody reads any more.
        """
        left = memoryview(encode(message))
        while left:
            sent = send_some(self.sock, left, fds)
            left, fds = left[sent:], ()

    def recv(self) -> tuple[T, list[int]]:
        """The next message and its descriptors (close-on-exec), blocking until it is whole.

        Raises:
            ConnectionClosed: The other end is closed.
        """
        while (received := self.try_recv()) is None:
            self.poll(None)
        return received

    def poll(self, timeout_s: float | None) -> bool:
        """Whether something can be read within `timeout_s` (None waits for ever)."""
        return bool(select.select([self.sock], [], [], timeout_s)[0])

    def try_recv(self) -> tuple[T, list[int]] | None:
        """The next message if it has arrived whole, else None. Never blocks.

        Raises:
            ConnectionClosed: The other end is closed.
        """
        if self._frame_bytes is None:
            if not self._fill(_LENGTH.size):
                return None
            self._frame_bytes = _LENGTH.unpack(self._frame)[0]
            self._frame = bytearray()
            if self._frame_bytes > _MAX_FRAME_BYTES:
                raise ConnectionClosed(f"a frame of {self._frame_bytes} bytes")
        if not self._fill(self._frame_bytes):
            return None
        message: T = self._decoder.decode(self._frame)
        fds, self._fds = self._fds, []
        self._frame, self._frame_bytes = bytearray(), None
        return message, fds

    def close(self) -> None:
        """Close our end, and descriptors whose message never became whole."""
        self.sock.close()
        while self._fds:
            os.close(self._fds.pop())

    def _fill(self, want_bytes: int) -> bool:
        """Read until the buffer holds exactly `want_bytes`; False when the socket has no more yet.

        Exactly, never beyond: a read that crossed a frame's border could take the next frame's
        descriptors with it.
        """
        while len(self._frame) < want_bytes:
            try:
                data, ancillary, _flags, _address = self.sock.recvmsg(
                    want_bytes - len(self._frame),
                    socket.CMSG_SPACE(MAX_FDS * _FD_BYTES),
                    socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC,
                )
            except BlockingIOError:
                return False
            except ConnectionResetError as error:
                raise ConnectionClosed from error
            self._take_fds(ancillary)
            if not data:
                raise ConnectionClosed
            self._frame += data
        return True

    def _take_fds(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(data[: len(data) - len(data) % _FD_BYTES])
                self._fds += received
