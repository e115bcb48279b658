"""Work that may never end, and how long anybody waits for it.

A driver, a resolver or a dead mount cannot be interrupted: each runs in a thread of its own that is left behind.
Knows nothing of what is done.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Late(Exception):
    """It had not ended when the time was up."""


class Deadline:
    """One moment for everything that is started under it."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.is_missed = False
        self._end_s = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        """How much time is left; a little, even when it is over."""
        return max(0.01, self._end_s - time.monotonic())

    def start(self, work: Callable[[], T]) -> Pending[T]:
        """Begin, and go on meanwhile."""
        return Pending(self, work)

    def run(self, work: Callable[[], T]) -> T:
        """What `work` gives.

        Raises:
            Late: The time is up; `is_missed` says so from now on.
        """
        return self.start(work).result()


class Pending(Generic[T]):
    """Work that was started."""

    def __init__(self, deadline: Deadline, work: Callable[[], T]):
        self._deadline = deadline
        self._work = work
        self._values: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._do, daemon=True)
        self._thread.start()

    def result(self) -> T:
        """What it gave or raised.

        Raises:
            Late: It still runs when the time is up.
        """
        self._thread.join(self._deadline.left_s)
        if self._error is not None:
            raise self._error
        if not self._values:
            self._deadline.is_missed = True
            raise Late(f"no answer within {self._deadline.seconds:g} s")
        return self._values[0]

    def _do(self) -> None:
        try:
            self._values.append(self._work())
        except Exception as error:  # noqa: BLE001 - it is raised again for who asks
            self._error = error
