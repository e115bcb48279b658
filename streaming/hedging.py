"""A range that is slower than its peers is read a second time; whichever read ends first wins. A read that is dead is replaced.

Takes a reader, gives one. A stalled connection then costs a few ordinary reads' time instead of a timeout, which matters most
when the last lanes are waited for. Extra bytes are bounded by a share of what was asked for, so that a source that is slow
as a whole is not asked for more. Knows neither sources nor why a read is slow; its clock is the event loop's.

A read that takes twice as long as a slow one, and half a second at least, is dropped for another even where that share is
spent. Nothing is read twice by that if the connection was dead, and only then does the next one take as long as any. So such
a range is on trial: as many as there are second reads at once, and what was dropped of it is an extra read unless its last
read was quick.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from streaming.causes import Cause
from streaming.counters import FetchCounters
from streaming.messages import BlobVersion
from streaming.options import HedgingOptions

if TYPE_CHECKING:
    from streaming.pipeline import Bytes, RangeReader

    ReadRange = Callable[[BlobVersion, int, int], Awaitable[Bytes]]

# Of a median of fewer nothing follows; more than the last few rows of the lanes tell of a source that was.
_LEAST_PEERS = 3
_MOST_PEERS = 64
# How often a range that has not come is looked at: others that end meanwhile change what is slow.
_TICK_S = 0.05
# A read is dead after so many times what makes it slow, and not sooner than this: a mistake costs bytes that nobody has
# allowed for. Of a range whose reads keep dying, every second one has twice as long.
_DEAD_FACTOR = 2
_LEAST_DEAD_S = 0.5
_DROPS_PER_DOUBLING = 2


class HedgePolicy:
    """Which range is slow or dead, and whether another read of it can be afforded. Pure.

    Args:
        options: What is slow, and which share of the bytes may be read twice.
        at_once: How many ranges have a second read beside the first at once, and how many others are on trial.
    """

    def __init__(self, options: HedgingOptions, at_once: int):
        self._options = options
        self._at_once = at_once
        self._peers: deque[tuple[int, float]] = deque(maxlen=_MOST_PEERS)
        self._asked_bytes = 0
        self._largest_bytes = 0
        self._extra_bytes = 0
        self._second_reads = 0
        self._trials = 0

    def asked(self, nbytes: int) -> None:
        """A range of the load is asked for."""
        self._asked_bytes += nbytes
        self._largest_bytes = max(self._largest_bytes, nbytes)

    def ended(self, nbytes: int, seconds: float) -> None:
        """A read of so many bytes took so long."""
        self._peers.append((nbytes, seconds))

    def is_slow(self, nbytes: int, seconds: float) -> bool:
        """Whether a read of so many bytes should have ended by now, by what others took."""
        return self._is_beyond(self._options.floor_s, 1, nbytes, seconds)

    def is_dead(self, nbytes: int, seconds: float, dropped: int) -> bool:
        """Whether nothing will come of a read, as it seems, when so many of the same range were dropped before."""
        patience = 1 << dropped // _DROPS_PER_DOUBLING
        return self._is_beyond(patience * _LEAST_DEAD_S, patience * _DEAD_FACTOR, nbytes, seconds)

    def begin_second(self, nbytes: int) -> bool:
        """Whether so many bytes may be read beside the first read of them; if so, they are spent, until `end_second`.

        One range beyond the share is free, or a small load could never be helped.
        """
        if self._second_reads >= self._at_once or self._extra_bytes + nbytes > self._allowed_bytes:
            return False
        self._second_reads += 1
        self._extra_bytes += nbytes
        return True

    def end_second(self) -> None:
        """Both reads are over."""
        self._second_reads -= 1

    def begin_trial(self) -> bool:
        """Whether dead reads of another range may be dropped for others until `end_trial`."""
        if self._trials >= self._at_once or self._extra_bytes > self._allowed_bytes:
            return False
        self._trials += 1
        return True

    def end_trial(self, extra_bytes: int) -> None:
        """So many bytes of the range were read in vain, as far as can be told."""
        self._trials -= 1
        self._extra_bytes += extra_bytes

    @property
    def _allowed_bytes(self) -> float:
        return self._options.budget_ratio * self._asked_bytes + self._largest_bytes

    def _is_beyond(self, least_s: float, times: int, nbytes: int, seconds: float) -> bool:
        if seconds <= least_s or len(self._peers) < _LEAST_PEERS:
            return False
        return seconds > times * self._options.factor * self._typical_s(nbytes)

    def _typical_s(self, nbytes: int) -> float:
        """What three of four took; a smaller peer's time is scaled up, a larger one's not down: a part of it was no transfer."""
        scaled = sorted(seconds * max(1.0, nbytes / peer_bytes) for peer_bytes, seconds in self._peers)
        return scaled[len(scaled) * 3 // 4]


class HedgingReader:
    """Reads through `reader`, and a slow range once more.

    Args:
        reader: What ranges are asked of.
        options: What is slow, and how many bytes may be read twice.
        at_once: How many ranges are read a second time at once (`PipelineOptions.second_reads`).
        counters: `hedges`, `hedges_won` and `wasted_bytes` are counted here, a read that was dropped as a retry after a timeout.
        read_again: What is asked for a range once more.
        is_held_back: Whether reads wait before they reach the source: then another one would only wait, too.
    """

    def __init__(
        self,
        reader: RangeReader,
        options: HedgingOptions,
        at_once: int,
        counters: FetchCounters,
        *,
        read_again: ReadRange | None = None,
        is_held_back: Callable[[], bool] = lambda: False,
    ):
        self._first = reader.read_range
        self._again = read_again or reader.read_range
        self._policy = HedgePolicy(options, at_once)
        self._counters = counters
        self._is_held_back = is_held_back

    async def read_range(self, version: BlobVersion, start: int, end: int) -> Bytes:
        """Bytes `[start, end)` of this version, of the read that had them first; no read is left behind.

        Raises:
            SourceError: The read failed, and where there were two, both did: the first one's error.
        """
        self._policy.asked(end - start)
        race = _Race(self._policy, self._counters, end - start)
        race.begin(lambda: self._first(version, start, end))
        try:
            while not await race.has_ended():
                if not self._is_held_back():
                    await race.replace_dead()
                    race.begin_second(lambda: self._again(version, start, end))
            return race.result()
        finally:
            await race.stop()


@dataclass
class _Read:
    """One read of a range, how it was asked for, and since when."""

    ask: Callable[[], Awaitable[Bytes]]
    task: asyncio.Task[Bytes]
    start_s: float

    @property
    def is_running(self) -> bool:
        return not self.task.done()

    @property
    def is_good(self) -> bool:
        return self.task.done() and self.task.exception() is None

    @property
    def seconds(self) -> float:
        return _now_s() - self.start_s


class _Race:
    """One range: its read or two at once, and what was dropped of it."""

    def __init__(self, policy: HedgePolicy, counters: FetchCounters, nbytes: int):
        self._policy = policy
        self._counters = counters
        self._nbytes = nbytes
        self._reads: list[_Read] = []
        self._dropped = 0
        self._dropped_after_s = 0.0
        self._was_dead = False

    def begin(self, ask: Callable[[], Awaitable[Bytes]]) -> None:
        """Read, with no read beside it."""
        self._reads.append(self._begun(ask))

    async def has_ended(self) -> bool:
        """Whether a read was good, or none runs any more, after one tick at most."""
        running = [read.task for read in self._reads if read.is_running]
        await asyncio.wait(running, timeout=_TICK_S, return_when=asyncio.FIRST_COMPLETED)
        return any(read.is_good for read in self._reads) or not any(read.is_running for read in self._reads)

    def result(self) -> Bytes:
        """Of the first read that was good; raises what the first one did if none was."""
        for index, read in enumerate(self._reads):
            if read.is_good:
                self._counters.hedges_won += index
                # What took as long as a read that was dropped says that this one was slow, too, and not dead.
                self._was_dead = read.seconds * _DEAD_FACTOR <= self._dropped_after_s
                return read.task.result()
        return self._reads[0].task.result()

    async def replace_dead(self) -> None:
        """Drop reads of which nothing will come, and their connections, for others, if that can be tried."""
        for index, read in enumerate(self._reads):
            if not read.is_running or not self._policy.is_dead(self._nbytes, read.seconds, self._dropped):
                continue
            if self._dropped or self._policy.begin_trial():
                self._dropped += 1
                self._dropped_after_s = read.seconds
                self._counters.wasted_bytes += self._nbytes
                self._counters.retries[Cause.TIMEOUT] = self._counters.retries.get(Cause.TIMEOUT, 0) + 1
                await _cancel([read])
                self._reads[index] = self._begun(read.ask)

    def begin_second(self, ask: Callable[[], Awaitable[Bytes]]) -> None:
        """Read beside the first read if that is slow, there is none yet, and it can be afforded."""
        if len(self._reads) > 1 or not self._policy.is_slow(self._nbytes, self._reads[0].seconds):
            return
        if self._policy.begin_second(self._nbytes):
            self._reads.append(self._begun(ask))
            self._counters.hedges += 1
            self._counters.wasted_bytes += self._nbytes  # one of the two is, whichever it will be

    async def stop(self) -> None:
        """Return when none runs any more, and settle what it cost."""
        if len(self._reads) > 1:
            self._policy.end_second()
        if self._dropped:
            self._policy.end_trial(0 if self._was_dead else self._dropped * self._nbytes)
        await _cancel(self._reads)

    def _begun(self, ask: Callable[[], Awaitable[Bytes]]) -> _Read:
        return _Read(ask, asyncio.create_task(self._timed(ask)), _now_s())

    async def _timed(self, ask: Callable[[], Awaitable[Bytes]]) -> Bytes:
        start_s = _now_s()
        data = await ask()
        self._policy.ended(self._nbytes, _now_s() - start_s)
        return data


async def _cancel(reads: Iterable[_Read]) -> None:
    """Return when none runs any more; dropping obstore's future closes its connection."""
    tasks = [read.task for read in reads]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
