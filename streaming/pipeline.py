"""The overlapped pipeline: lanes that fetch chunks and land them. The only threads of the loader.

Takes a source, chunks and an arena; reports each landed chunk. Knows no checkpoint and no message. Host
memory is one chunk per lane, whatever the model's size.
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
    todo: queue.SimpleQueue[Chunk] = queue.SimpleQueue()
    for chunk in chunks:
        todo.put(chunk)
    by_name = {version.name: version for version in versions}
    errors: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
    stop = threading.Event()
    fetched_s = [boottime_s()] * lanes

    def lane(number: int) -> None:
        try:
            destination = arena.open_lane(on_landed)
            while not stop.is_set() and (chunk := _next(todo)) is not None:
                data = source.read_range(by_name[chunk.shard], chunk.start, chunk.end)
                fetched_s[number] = boottime_s()
                destination.land(chunk, memoryview(data))
            destination.finish()
        except BaseException as error:  # noqa: BLE001 - it is raised again on the caller's thread
            errors.put(error)
            stop.set()

    threads = [threading.Thread(target=lane, args=(number,), name=f"lane-{number}") for number in range(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not errors.empty():
        raise errors.get()
    return max(fetched_s)


def _next(todo: queue.SimpleQueue[Chunk]) -> Chunk | None:
    try:
        return todo.get_nowait()
    except queue.Empty:
        return None
