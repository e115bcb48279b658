"""The loader's end of its connection: nobody ever waits for the server to read.

The server parses a tokenizer with the GIL held for most of a second, while the plan and landed chunks fill the
socket: what is sent is queued and written by a thread. Knows no message.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import msgspec

from streaming.wire import Connection, ConnectionClosed

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Sends from any thread, receives on one.

    Args:
        connection: Nobody else may use it.
        on_closed: Called from the writing thread when nobody reads any more.
    """

    def __init__(self, connection: Connection[T], on_closed: Callable[[], None]):
        self._connection = connection
        self._on_closed = on_closed
        self._waiting: queue.SimpleQueue[tuple[msgspec.Struct, Sequence[int]] | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="mailbox", daemon=True)
        self._writer.start()

    def send(self, message: msgspec.Struct, fds: Sequence[int] = ()) -> None:
        """Queue a message; `fds` must stay open until `flush` has returned."""
        self._waiting.put((message, fds))

    def recv(self) -> tuple[T, list[int]]:
        """The next message and its descriptors, blocking until it is whole.

        Raises:
            ConnectionClosed: The other end is closed.
        """
        return self._connection.recv()

    def flush(self) -> None:
        """Return once everything queued is written; nothing may be sent afterwards."""
        self._waiting.put(None)
        self._writer.join()

    def _write(self) -> None:
        try:
            while (item := self._waiting.get()) is not None:
                self._connection.send(*item)
        except ConnectionClosed:
            self._on_closed()
