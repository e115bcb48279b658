"""Reads that are tried again: each by itself, never the load.

Takes readers, gives readers. What is tried again and when is `retry_policy`'s to say; here are the clock, the sleep and the
counting. Knows no store and no checkpoint.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from streaming.counters import FetchCounters
from streaming.errors import SourceError
from streaming.messages import BlobVersion
from streaming.options import SourceOptions
from streaming.retry_policy import Budget, Policy

if TYPE_CHECKING:
    from streaming.pipeline import Bytes, RangeReader
    from streaming.source import Prefix, Source
    from streaming.uri import Location

T = TypeVar("T")


class Retries:
    """The retries of one load, which begins now: their policy, their budget, their count. For any thread.

    Args:
        options: How often and how long one read is tried.
        counters: Where retries are counted, by cause.
        lanes: How many reads there are at once.
    """

    def __init__(self, options: SourceOptions, counters: FetchCounters, lanes: int = 1):
        self._policy = Policy(options.max_retries, options.retry_timeout_s)
        self._start_s = time.monotonic()
        self.counters = counters
        self._budget = Budget(lanes)
        self._lock = threading.Lock()

    def begin(self) -> Read:
        """A read that is about to be tried for the first time."""
        return Read(self)

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """What the function gives, which is called until then.

        Raises:
            SourceError: Of the last call.
        """
        read = self.begin()
        while True:
            try:
                found = function(*arguments)
            except SourceError as error:
                wait_s = read.wait_s(error)
            else:
                read.succeeded()
                return found
            time.sleep(wait_s)

    def succeeded(self) -> None:
        """A read has got its bytes."""
        with self._lock:
            self._budget.earn()

    def wait_s(self, error: SourceError, retries: int, elapsed_s: float) -> tuple[float, float] | None:
        """As `Policy.wait_s`, and how long it is until the budget has room; a retry that is granted is counted."""
        with self._lock:
            now_s = time.monotonic()
            wait_s = self._policy.wait_s(
                error.cause,
                retries=retries,
                elapsed_s=elapsed_s,
                load_s=now_s - self._start_s,
                draw=random.random(),  # noqa: S311 - no secret
            )
            if wait_s is None or error.cause is None:
                return None
            turn_s = self._budget.turn_s(now_s)
            self._budget.spend(now_s)
            self.counters.retries[error.cause] = self.counters.retries.get(error.cause, 0) + 1
        return wait_s, turn_s


class Read:
    """One read and its attempts.

    Its clock stands still while it waits for others: for the budget's turn, and for its own turn to read. Else a load of many
    lanes would give up reads that were hardly tried.
    """

    def __init__(self, retries: Retries):
        self._retries = retries
        self._attempt_at_s = time.monotonic()
        self._elapsed_s = 0.0
        self._attempts = 0

    def wait_s(self, error: SourceError) -> float:
        """How long to wait after an attempt that failed.

        Raises:
            SourceError: `error`, which also says how often it was tried, if it is not tried again.
        """
        self._attempts += 1
        now_s = time.monotonic()
        self._elapsed_s += now_s - self._attempt_at_s if error.read_s is None else error.read_s
        granted = self._retries.wait_s(error, self._attempts - 1, self._elapsed_s)
        if granted is not None:
            own_s, turn_s = granted
            wait_s = max(own_s, turn_s)
            self._elapsed_s += own_s
            self._attempt_at_s = now_s + wait_s
            return wait_s
        if self._attempts > 1:
            last = f", the last: {error.cause}" if error.cause else ""
            error.args = (f"{error} ({self._attempts} attempts in {self._elapsed_s:.1f} s{last})",)
        raise error

    def succeeded(self) -> None:
        """It has got its bytes."""
        self._retries.succeeded()


class RetryingRanges:
    """A reader whose ranges are tried again."""

    def __init__(self, reader: RangeReader, retries: Retries):
        self._reader = reader
        self._retries = retries

    async def read_range(self, version: BlobVersion, start: int, end: int) -> Bytes:
        """As the reader's own.

        Raises:
            SourceError: Of the last attempt.
        """
        read = self._retries.begin()
        while True:
            try:
                data = await self._reader.read_range(version, start, end)
            except SourceError as error:
                wait_s = read.wait_s(error)
            else:
                read.succeeded()
                return data
            await asyncio.sleep(wait_s)


def open_retrying(uri: str, options: SourceOptions) -> RetryingSource:
    """As `open_source`, for who reads by themselves and counts nothing.

    Raises:
        SourceError: The URI cannot be meant, or no credential is found.
    """
    from streaming.source import open_source

    return RetryingSource(open_source(uri, options), Retries(options, FetchCounters()))


class RetryingSource:
    """What is read to describe a checkpoint, tried again by the same policy."""

    def __init__(self, source: Source, retries: Retries):
        self._source = source
        self._retries = retries
        self._ranges = RetryingRanges(source, retries)

    @property
    def location(self) -> Location:
        """Where the source is."""
        return self._source.location

    def list(self) -> dict[str, int] | None:
        """As `Source.list`."""
        return self._retries.call(self._source.list)

    def list_once(self) -> dict[str, int] | None:
        """As `Source.list`, and not tried again."""
        return self._source.list()

    def read(self, name: str) -> Bytes:
        """As `Source.read`."""
        return self._retries.call(self._source.read, name)

    def read_prefix(self, name: str, nbytes: int) -> Prefix:
        """As `Source.read_prefix`."""
        return self._retries.call(self._source.read_prefix, name, nbytes)

    async def read_range(self, version: BlobVersion, start: int, end: int) -> Bytes:
        """As `Source.read_range`."""
        return await self._ranges.read_range(version, start, end)
