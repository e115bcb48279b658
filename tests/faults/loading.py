"""One load against a hostile source, in this process or in a loader's: what came of it, and what it left behind.

Takes a URI and options; which readers are around the source is the loader's business. Knows no fault.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import psutil

from streaming.__main__ import _answer
from streaming.counters import FetchCounters
from streaming.errors import ErrorReport
from streaming.messages import Counted, Described, Landed, Layout, LoadFailed, LoadRequest, Origin, Planned
from streaming.options import DIRECT_GPU, CacheOptions, DestinationOptions, PipelineOptions, SourceOptions
from tests.loader import Load, as_stored, load

T = TypeVar("T")

# Small enough that a tiny checkpoint has a dozen ranges, or dozens.
PIPELINE = PipelineOptions(lanes=4, chunk_bytes=64 << 10)
FINE = PipelineOptions(lanes=4, chunk_bytes=16 << 10)
_GRACE_S = 5.0


@dataclass(frozen=True)
class Outcome:
    """Files and landed tensors by name, or the error as the server hears of it; how long it took, and what was counted."""

    files: Mapping[str, bytes]
    tensors: Mapping[str, bytes]
    error: ErrorReport | None
    seconds: float
    counters: FetchCounters = field(default_factory=FetchCounters)


def load_here(
    uri: str, options: SourceOptions, pipeline: PipelineOptions = PIPELINE, cache: CacheOptions | None = None
) -> Outcome:
    """Run a loader's own code in this process, with every reader that it puts around the source.

    Any exception that is no `StreamingError` comes through: there is none that a load may raise.
    """
    request = LoadRequest(
        origin=Origin(arena_id="faults"),
        uri=uri,
        strategy=DIRECT_GPU,
        source=options,
        pipeline=pipeline,
        destination=DestinationOptions(),
        cache=cache,
    )
    start_s = time.monotonic()
    with _Server() as server:
        _answer(server, request, [])  # type: ignore[arg-type]
        return server.outcome(time.monotonic() - start_s)


def load_in_process(uri: str, options: SourceOptions, pipeline: PipelineOptions = PIPELINE) -> Outcome:
    """The same by a loader process."""
    start_s = time.monotonic()
    return _outcome(load(uri, source=options, pipeline=pipeline), start_s)


def _outcome(ended: Load, start_s: float) -> Outcome:
    seconds = time.monotonic() - start_s
    if ended.error is not None:
        return Outcome({}, {}, ended.error, seconds, ended.counters)
    assert ended.report is not None
    assert ended.described is not None
    assert ended.plan is not None
    tensors = {name: ended.tensor(name) for name in ended.plan.extents}
    return Outcome(ended.described.files, tensors, None, seconds, ended.counters)


class _Server:
    """What the loader says to its server, and hears: every tensor is wanted as it is."""

    def __init__(self) -> None:
        self._messages: list[object] = []
        self._fds: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._fds:
            os.close(fd)

    def send(self, message: object, fds: Sequence[int] = ()) -> None:
        self._messages.append(message)
        self._fds += fds

    def recv(self) -> tuple[Layout, list[int]]:
        return as_stored(self._last(Described)), []

    def outcome(self, seconds: float) -> Outcome:
        if failed := self._last(LoadFailed):
            told = self._last(Counted)
            return Outcome({}, {}, failed.error, seconds, told.counters if told else FetchCounters())
        counters = self._last(Landed).report.counters
        extents = self._last(Planned).plan.extents
        tensors = {name: os.pread(self._fds[0], extent.nbytes, extent.start) for name, extent in extents.items()}
        return Outcome(self._last(Described).files, tensors, None, seconds, counters)

    def _last(self, kind: type[T]) -> Any:
        return next((message for message in reversed(self._messages) if isinstance(message, kind)), None)


@contextlib.contextmanager
def nothing_left_behind() -> Iterator[None]:
    """After the block, with grace, there is no thread, socket or file that was not there before."""
    threads, files = set(threading.enumerate()), _files()
    yield
    deadline_s = time.monotonic() + _GRACE_S
    while left := [*set(threading.enumerate()) - threads, *(_files() - files)]:
        assert time.monotonic() < deadline_s, f"left behind: {left}, {psutil.Process().net_connections()}"
        gc.collect()  # an error's traceback may hold an answer in a cycle
        time.sleep(0.005)


def _files() -> set[tuple[str, str]]:
    """Descriptors that are open here, with what they are."""
    found = set()
    for link in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(FileNotFoundError):  # the folder's own
            found.add((link.name, str(link.readlink())))
    return found
