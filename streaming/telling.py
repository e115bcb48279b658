"""Tells how the counters of a load stand, while it goes on.

Takes the counters and a function to tell them with, from a thread of its own. Knows no message and no socket.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from streaming.counters import FetchCounters

_EVERY_S = 1.0


class Telling:
    """Tells a copy every second in which something was counted, for the length of a `with` block, and once more if that fails.

    What was counted by a block that ends well is for its own report to say.
    """

    def __init__(self, counters: FetchCounters, tell: Callable[[FetchCounters], None]):
        self._counters = counters
        self._tell = tell
        self._told = FetchCounters()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telling", daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell nothing any more."""
        self._over.set()
        self._thread.join()
        if error is not None:
            self._tell_change()

    def _run(self) -> None:
        while not self._over.wait(_EVERY_S):
            self._tell_change()

    def _tell_change(self) -> None:
        now = self._counters.copied()
        if now != self._told:
            self._told = now
            self._tell(now)
