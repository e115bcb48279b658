"""The overlapped pipeline: lanes fetch chunks, landers have them checked, writers put them at their addresses.

A lane is a coroutine, because obstore's own threads do its work; a writer is a thread, because it copies. A lane fetches on
while what it fetched lands: lanes that waited for that would soon do so all at once, and the network would rest. Takes a source,
chunks and an arena; reports each landed chunk. Knows no checkpoint and no message. Host memory is bounded
(`PipelineOptions.chunks_held`), whatever the model's size.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

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


# Gives the bytes of a read once they are known to be right: those that came, or others.
Check = Callable[[BlobVersion, int, int, "Bytes"], Awaitable["Bytes"]]


def land(
    source: RangeReader,
    chunks: Iterable[Chunk],
    versions: Iterable[BlobVersion],
    arena: Arena,
    *,
    check: Check,
    lanes: int,
    landers: int,
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
        check: What no chunk lands without.
        lanes: How many chunks are fetched at once.
        landers: How many are on their way from a lane to a writer at once.
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
        return asyncio.run(_Load(source, check, versions, pool, timings).run(iter(chunks), lanes, landers))
    except BaseExceptionGroup as group:
        raise _first(group) from None
    finally:
        for writer in pool:
            writer.stop()


def _first(error: BaseException) -> BaseException:
    """The error that ended a group of groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class _Fetched(NamedTuple):
    """A chunk whose bytes have come, and when."""

    chunk: Chunk
    data: Bytes
    fetched_s: float


class _Load:
    """What the lanes and landers of one load have in common."""

    def __init__(
        self,
        source: RangeReader,
        check: Check,
        versions: Iterable[BlobVersion],
        writers: Sequence[_Writer],
        timings: Timings,
    ):
        self._source = source
        self._check = check
        self._timings = timings
        self._versions = {version.name: version for version in versions}
        self._writers = writers
        self._idle: asyncio.Queue[_Writer] = asyncio.Queue()
        # One place: a chunk waits in the lane that fetched it, where it is counted.
        self._fetched: asyncio.Queue[_Fetched | None] = asyncio.Queue(1)
        self._fetched_s = boottime_s()

    async def run(self, todo: Iterator[Chunk], lanes: int, landers: int) -> float:
        """Everything at once; gives when the last byte had been fetched."""
        async with asyncio.TaskGroup() as group:
            for writer in self._writers:
                group.create_task(self._open(writer))
            for _ in range(landers):
                group.create_task(self._run_lander())
            async with asyncio.TaskGroup() as fetching:
                for _ in range(lanes):
                    fetching.create_task(self._run_lane(todo))
            for _ in range(landers):
                await self._fetched.put(None)
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
            await self._fetched.put(_Fetched(chunk, data, fetched_s))
            del data  # or another chunk would be held while the next one is fetched

    async def _run_lander(self) -> None:
        while fetched := await self._fetched.get():
            chunk, data, fetched_s = fetched
            data = await self._check(self._versions[chunk.shard], chunk.start, chunk.end, data)
            writer = await self._idle.get()
            self._timings.taken(chunk.shard, fetched_s, boottime_s())
            await writer.write(chunk, data)
            self._idle.put_nowait(writer)
            del fetched, data  # while it waits for another


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
