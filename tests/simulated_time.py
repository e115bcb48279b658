"""An event loop whose clock is moved on by its own sleeps, and a source in it that takes as long as it is told."""

from __future__ import annotations

import asyncio
import selectors
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from streaming.messages import BlobVersion

T = TypeVar("T")
VERSION = BlobVersion("a", 1 << 40, '"1"', 0.0)


class _Skipping(selectors.DefaultSelector):
    """Nobody waits: the time that would have passed has passed."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "nothing will ever happen again"
        self.now_s += max(0.0, timeout)
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _Skipping()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now_s


def simulate(main: Coroutine[Any, Any, T]) -> T:
    """What `main` gives, at once, whatever it waits for; no task may be left behind."""

    async def checked() -> T:
        result = await main
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return result

    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(checked())


def now_s() -> float:
    """The simulated time."""
    return asyncio.get_running_loop().time()


class SlowSource:
    """A `RangeReader` whose bytes are `b"START-END"`; `takes(start, attempt)` is for how long, or the error after a second."""

    def __init__(self, takes: Callable[[int, int], float | Exception]):
        self._takes = takes
        self.attempts: Counter[int] = Counter()
        self.asked_bytes = 0
        self.running = self.most_running = 0

    async def read_range(self, version: BlobVersion, start: int, end: int) -> bytes:
        """The range's name, or its error, when its time is over."""
        assert version is VERSION
        self.attempts[start] += 1
        self.asked_bytes += end - start
        takes = self._takes(start, self.attempts[start])
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(1.0 if isinstance(takes, Exception) else takes)
        finally:
            self.running -= 1
        if isinstance(takes, Exception):
            raise takes
        return b"%d-%d" % (start, end)
