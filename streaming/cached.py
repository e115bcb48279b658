"""Ranges from a local disk where they are there and whole, else from the source, and then onto the disk.

A `RangeReader` around another one. Opportunistic: no error of the disk leaves it, and a lane waits neither for a write
nor long for a read. Knows the location and versions of blobs, but no checkpoint and no message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from streaming.counters import FetchCounters
from streaming.messages import BlobVersion
from streaming.options import CacheOptions
from streaming.pipeline import RangeReader
from streaming.uri import Location

if TYPE_CHECKING:
    from streaming.cache.keys import BlobKey
    from streaming.cache.store import Store
    from streaming.pipeline import Bytes

OFF, READ_ONLY = "no-cache", "no-cache-writes"
_READERS = 8
# For one read: a disk that hangs must not hold up the load.
_PATIENCE_S = 10.0
# The loader stays so much longer than the load at most; the queue is a second of a disk's work.
_FINISH_S = 30.0


@dataclass(frozen=True)
class _Fetched:
    key: BlobKey
    start: int
    data: memoryview

    @property
    def nbytes(self) -> int:
        return self.data.nbytes


class Cached:
    """One load's way through the cache; its folder is opened in a thread from the first moment on.

    Args:
        source: Where misses are fetched.
        location: Of the blobs, a part of their keys.
        options: The folder and its limits.
        counters: `cache_hit_bytes` and `cache_miss_bytes` are counted here.
        on_fallback: Told at most once each, with the reason: `OFF` when nothing is read from the disk any more,
            `READ_ONLY` when nothing is written to it. From any thread.
    """

    def __init__(
        self,
        source: RangeReader,
        location: Location,
        options: CacheOptions,
        counters: FetchCounters,
        on_fallback: Callable[[str, str], None],
    ):
        from streaming.cache.write_behind import WriteBehind

        self._source = source
        self._location = location
        self._options = options
        self._counters = counters
        self._on_fallback = on_fallback
        self._keys: dict[BlobVersion, BlobKey] = {}
        self._refused: list[tuple[BlobVersion, int, int]] = []
        self._may_read = self._may_write = True
        self._pool = ThreadPoolExecutor(_READERS, thread_name_prefix="cache-reader")
        self._store = self._pool.submit(self._open)
        self._ready: Future[None] = Future()
        self._writing = WriteBehind[_Fetched](self._write, options.queue_bytes)

    def expect(self, versions: Iterable[BlobVersion]) -> None:
        """Say what will be read, before the first read: nobody deletes it from now on."""
        from streaming.cache.keys import key_of

        found = {version: key_of(self._location, version) for version in versions}
        self._keys = {version: key for version, key in found.items() if key is not None}
        unpinned = next((version.name for version, key in found.items() if key is None), None)
        if unpinned is not None:
            self._on_fallback(OFF, f"the source gives no strong ETag ({unpinned}), which would tell versions apart")
        self._ready = self._pool.submit(self._open_blobs, tuple(self._keys.values()))

    async def read_range(self, version: BlobVersion, start: int, end: int) -> Bytes:
        """Bytes `[start, end)` of this version.

        Raises:
            SourceError: Of the source; none of the cache.
        """
        if (found := await self._find(version, start, end)) is not None:
            self._counters.cache_hit_bytes += end - start
            return cast("Bytes", found)
        data = await self._source.read_range(version, start, end)
        self._counters.cache_miss_bytes += end - start
        if version in self._keys and self._may_read and self._may_write:
            self._writing.offer(_Fetched(self._keys[version], start, memoryview(data)))
        return data

    def refuse(self, version: BlobVersion, start: int, end: int) -> None:
        """Read this range from the source from now on: its bytes were wrong before they were kept."""
        self._refused.append((version, start, end))

    def finish(self) -> None:
        """Let what waits be written, for a while; no read may follow."""
        self._writing.finish(_FINISH_S)
        self._pool.shutdown(wait=False)
        if self._store.done() and not self._store.exception():
            self._store.result().close()

    def _open(self) -> Store:
        from streaming.cache.store import Store

        return Store(self._options)

    def _open_blobs(self, keys: tuple[BlobKey, ...]) -> None:
        store = self._store.result()
        for key in keys:
            store.open(key)

    async def _find(self, version: BlobVersion, start: int, end: int) -> memoryview | None:
        """What the disk has of it; an error of the disk is its last."""
        is_refused = any(each == version and start < last and end > first for each, first, last in self._refused)
        if is_refused or not self._may_read or version not in self._keys:
            return None
        try:
            async with asyncio.timeout(_PATIENCE_S):
                return await asyncio.wrap_future(self._pool.submit(self._read, self._keys[version], start, end))
        except OSError as error:
            if self._may_read:
                self._may_read = False
                self._on_fallback(OFF, self._reason(error))
            return None

    def _read(self, key: BlobKey, start: int, end: int) -> memoryview | None:
        self._ready.result()
        return self._store.result().read(key, start, end)

    def _write(self, fetched: _Fetched) -> None:
        from streaming.cache.store import CacheFull

        if not self._may_write:
            return
        try:
            self._store.result().write(fetched.key, fetched.start, fetched.data)
        except CacheFull:
            self._stop_writing(f"{self._options.folder} is full of what is in use: raise --cache-size, or make room")
        except OSError as error:
            self._stop_writing(self._reason(error))

    def _stop_writing(self, reason: str) -> None:
        self._may_write = False
        self._on_fallback(READ_ONLY, reason)

    def _reason(self, error: OSError) -> str:
        return f"{self._options.folder}: {error.strerror or f'no answer within {_PATIENCE_S:g} s'}"
