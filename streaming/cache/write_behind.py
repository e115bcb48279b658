"""Writes that nobody waits for: a bounded queue and one thread of low priority.

Takes what is to be written and who writes it; knows neither blobs nor disks. What finds the queue full is dropped.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

_LEAST_PRIORITY = 19


class Sized(Protocol):
    """What takes a part of the queue."""

    @property
    def nbytes(self) -> int:
        """How many bytes of memory it holds."""


T = TypeVar("T", bound=Sized)


class WriteBehind(Generic[T]):
    """The queue and its thread.

    Args:
        write: Called in the thread with one item after the other; must not raise.
        most_bytes: What waiting items, the one that is being written included, may hold.
    """

    def __init__(self, write: Callable[[T], None], most_bytes: int):
        self._write = write
        self._most_bytes = most_bytes
        self._held_bytes = 0
        self._is_over = False
        self._waiting: deque[T] = deque()
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="cache-writer", daemon=True).start()

    def offer(self, item: T) -> None:
        """Have it written, unless too much is waiting already."""
        with self._changed:
            if self._held_bytes + item.nbytes <= self._most_bytes:
                self._held_bytes += item.nbytes
                self._waiting.append(item)
                self._changed.notify_all()

    def finish(self, timeout_s: float) -> None:
        """Return when everything is written, or when the time is up; the rest is dropped, and nothing more may be offered."""
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            while self._held_bytes and (left_s := deadline_s - time.monotonic()) > 0:
                self._changed.wait(left_s)
            self._held_bytes -= sum(item.nbytes for item in self._waiting)
            self._waiting.clear()
            self._is_over = True
            self._changed.notify_all()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LEAST_PRIORITY)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_over)
                if not self._waiting:
                    return
                item = self._waiting.popleft()
            self._write(item)
            with self._changed:
                self._held_bytes -= item.nbytes
                self._changed.notify_all()
            del item
