"""The overlapped pipeline: lanes fetch chunks, writers put them at their addresses.

A lane is a coroutine, because obstore's own threads do its work; a writer is a thread, because it copies. Takes a
source, chunks and an arena; reports each landed chunk. Knows no checkpoint and no message. Host memory is bounded
(`PipelineOptions.chunks_held`), whatever the model's size.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from streaming.arena import Arena
from streaming.clock import boottime_s
from streaming.messages import BlobVersion, Chunk
from streaming.timings import Timings

if TYPE_CHECKING:
    from obstore import Bytes as Bytes  # noqa: PLC0414 - whoever is a reader, too, takes it from here

T = TypeVar("T")


class RangeReader(Protocol):
    """What the lanes need of a source."""

    async def read_range(self, version: BlobVersion, start: int, end: int) -> Bytes:
        """Bytes `[start, end)` of this version, as a buffer."""


def land(
    source: RangeReader,
    chunks: Iterable[Chunk],
    versions: Iterable[BlobVersion],
    arena: Arena,
    *,
    lanes: int,
    writers: int,
    on_landed: Callable[[Chunk], None],
    timings: Timings,
) -> float:
    """Fetch and land every chunk; returns once all of them have landed.

    The first error cancels every fetch, and is raised once no writer is writing any more.

    Args:
        source: Where the bytes are.
        chunks: What to fetch, in the order in which lanes take them.
        versions: The version of every shard that the chunks name.
        arena: Where the bytes go.
        lanes: How many chunks are fetched at once.
        writers: How many are put at their addresses at once.
        on_landed: Called from writers' threads, once per chunk.
        timings: Filled with each shard's times.

    Returns:
        When the last byte had been fetched (CLOCK_BOOTTIME, seconds); landing it took until the return.

    Raises:
        StreamingError: Of the first chunk that failed.
    """

    def landed(chunk: Chunk) -> None:
        timings.landed(chunk.shard, boottime_s())
        on_landed(chunk)

    pool = [_Writer(arena, landed) for _ in range(writers)]
    try:
        return asyncio.run(_Load(source, versions, pool, timings).run(iter(chunks), lanes))
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    finally:
        for writer in pool:
            writer.stop()


class _Load:
    """What the lanes of one load have in common."""

    def __init__(
        self, source: RangeReader, versions: Iterable[BlobVersion], writers: Sequence[_Writer], timings: Timings
    ):
        self._source = source
        self._timings = timings
        self._versions = {version.name: version for version in versions}
        self._writers = writers
        self._idle: asyncio.Queue[_Writer] = asyncio.Queue()
        self._fetched_s = boottime_s()

    async def run(self, todo: Iterator[Chunk], lanes: int) -> float:
        """Everything at once; gives when the last byte had been fetched."""
        async with asyncio.TaskGroup() as group:
            for writer in self._writers:
                group.create_task(self._open(writer))
            for _ in range(lanes):
                group.create_task(self._run_lane(todo))
        await asyncio.gather(*(writer.finish() for writer in self._writers))
        return self._fetched_s

    async def _open(self, writer: _Writer) -> None:
        await writer.open()
        self._idle.put_nowait(writer)

    async def _run_lane(self, todo: Iterator[Chunk]) -> None:
        for chunk in todo:
            start_s = boottime_s()
            data = await self._source.read_range(self._versions[chunk.shard], chunk.start, chunk.end)
            fetched_s = self._fetched_s = boottime_s()  # of several lanes the last one writes last
            self._timings.fetched(chunk, start_s, fetched_s)
            writer = await self._idle.get()
            self._timings.taken(chunk.shard, fetched_s, boottime_s())
            await writer.write(chunk, data)
            self._idle.put_nowait(writer)
            del data  # or another chunk would be held while the next one is fetched


class _Writer:
    """One writer of the arena, on a thread of its own: what is opened there is used there."""

    def __init__(self, arena: Arena, on_landed: Callable[[Chunk], None]):
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._arena = arena
        self._on_landed = on_landed

    async def open(self) -> None:
        self._writer = await self._on_thread(self._arena.open_writer, self._on_landed)

    async def write(self, chunk: Chunk, data: Bytes) -> None:
        await self._on_thread(self._writer.write, chunk, memoryview(data))

    async def finish(self) -> None:
        await self._on_thread(self._writer.finish)

    def stop(self) -> None:
        """Wait for what it is doing."""
        self._thread.shutdown()

    def _on_thread(self, function: Callable[..., T], *arguments: Any) -> Awaitable[T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)
