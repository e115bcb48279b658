"""One child's socket inside the event loop: messages in, messages out, nothing ever blocks.

Takes a child and callbacks; knows nothing of what is said. Writes that the kernel does not take at once
(a child busy with a long step) wait here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from app.child import Child
from streaming.wire import Connection, ConnectionClosed, encode, send_some

OnMessage = Callable[[Any, list[int]], None]


class Channel:
    """A child's messages, as calls.

    Args:
        child: The process at the other end; closed, never killed, by this object.
        incoming: The union of message types that it sends.
        on_message: Called with each message and the descriptors that came with it.
        on_closed: Called once, when the child has closed its end or died.
        on_error: Called when one of the others raised: a fault of ours, which must not pass in silence.
    """

    def __init__(
        self,
        child: Child,
        incoming: Any,
        *,
        on_message: OnMessage,
        on_closed: Callable[[], None],
        on_error: Callable[[Exception], None],
    ):
        self._connection: Connection[Any] = Connection(child.sock, incoming)
        self._on_message = on_message
        self._on_closed = on_closed
        self._on_error = on_error
        self._outgoing: deque[tuple[memoryview, tuple[int, ...]]] = deque()
        self._loop = asyncio.get_running_loop()
        child.sock.setblocking(False)
        self._sock = child.sock
        self._loop.add_reader(self._sock, self._read)

    def send(self, message: msgspec.Struct, fds: Sequence[int] = ()) -> None:
        """Queue a message. To a child that is gone it goes nowhere: `on_closed` tells of that."""
        self._outgoing.append((memoryview(encode(message)), tuple(fds)))
        self._write()

    def close(self) -> None:
        """Stop listening and close our end."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._connection.close()

    def _read(self) -> None:
        try:
            self._pass_on()
        except Exception as error:  # noqa: BLE001 - the event loop would print it and go on, half alive
            self._on_error(error)

    def _pass_on(self) -> None:
        try:
            while self._sock.fileno() >= 0 and (received := self._connection.try_recv()) is not None:
                self._on_message(*received)
        except ConnectionClosed:
            self.close()
            self._on_closed()

    def _write(self) -> None:
        try:
            while self._outgoing and self._sock.fileno() >= 0:
                frame, fds = self._outgoing.popleft()
                sent = self._send_some(frame, fds)
                if sent < len(frame):
                    self._outgoing.appendleft((frame[sent:], () if sent else fds))
                    self._loop.add_writer(self._sock, self._write)
                    return
        except ConnectionClosed:
            self._outgoing.clear()  # the reader sees the end, too, and tells
        if self._sock.fileno() >= 0:
            self._loop.remove_writer(self._sock)

    def _send_some(self, frame: memoryview, fds: tuple[int, ...]) -> int:
        try:
            return send_some(self._sock, frame, fds)
        except BlockingIOError:
            return 0
