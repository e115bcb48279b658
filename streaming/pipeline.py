"""The overlapped pipeline: lanes that fetch chunks and land them. The only threads of the loader.

Takes a source, chunks and an arena; reports each landed chunk. Knows no checkpoint and no message. Host
memory is at most two chunks per lane (the source joins a body's pieces), whatever the model's size.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from streaming.arena import Arena
from streaming.clock import boottime_s
from streaming.messages import BlobVersion, Chunk

if TYPE_CHECKING:
    from obstore import Bytes


class RangeReader(Protocol):
    """What the lanes need of a source."""

    def read_range(self, version: BlobVersion, start: int, end: int) -> Bytes:
        """Bytes `[start, end)` of this version, as a buffer."""


def land(
    source: RangeReader,
    chunks: Iterable[Chunk],
    versions: Iterable[BlobVersion],
    arena: Arena,
    *,
    lanes: int,
    on_landed: Callable[[Chunk], None],
) -> float:
    """Fetch and land every chunk; returns once all of them have landed.

    The first error stops every lane after the chunk it is on, and is raised when they have stopped.

    Args:
        source: Where the bytes are; used from every lane.
        chunks: What to fetch, in the order in which lanes take them.
        versions: The version of every shard that the chunks name.
        arena: Where the bytes go.
        lanes: How many chunks are on their way at once.
        on_landed: Called from lane threads, once per chunk.

    Returns:
        When the last byte had been fetched (CLOCK_BOOTTIME, seconds); landing it took until the return.

    Raises:
        StreamingError: Of the first chunk that failed.
    """
    shared = _Shared(source, chunks, versions, arena, on_landed)
    threads = [threading.Thread(target=shared.run_lane, name=f"lane-{number}") for number in range(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return shared.result()


class _Shared:
    """What the lanes of one load have in common."""

    def __init__(
        self,
        source: RangeReader,
        chunks: Iterable[Chunk],
        versions: Iterable[BlobVersion],
        arena: Arena,
        on_landed: Callable[[Chunk], None],
    ):
        self._source = source
        self._arena = arena
        self._on_landed = on_landed
        self._versions = {version.name: version for version in versions}
        self._todo: queue.SimpleQueue[Chunk] = queue.SimpleQueue()
        for chunk in chunks:
            self._todo.put(chunk)
        self._errors: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._fetched_s = boottime_s()

    def run_lane(self) -> None:
        """Fetch and land chunks until none is left or a lane has failed."""
        try:
            lane = self._arena.open_lane(self._on_landed)
            while not self._stop.is_set() and (chunk := _next(self._todo)) is not None:
                data = self._source.read_range(self._versions[chunk.shard], chunk.start, chunk.end)
                self._fetched_s = boottime_s()  # of several lanes the last one writes last
                lane.land(chunk, memoryview(data))
                del data  # or a third chunk would be held while the next one is fetched
            lane.finish()
        except BaseException as error:  # noqa: BLE001 - it is raised again on the caller's thread
            self._errors.put(error)
            self._stop.set()

    def result(self) -> float:
        """When the last byte had been fetched, or the first error."""
        if not self._errors.empty():
            raise self._errors.get()
        return self._fetched_s


def _next(todo: queue.SimpleQueue[Chunk]) -> Chunk | None:
    try:
        return todo.get_nowait()
    except queue.Empty:
        return None
