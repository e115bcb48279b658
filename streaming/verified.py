"""Reads of whole blocks, compared with their digests before anybody sees them.

Takes a reader and block digests by shard, and is one itself. The digests are computed in threads: they give up the GIL, and
the event loop has other lanes to wake. Knows no manifest, no chunk and no arena.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from streaming.blocks import BlockDigests
from streaming.counters import FetchCounters
from streaming.digests import Mismatch, mismatches
from streaming.errors import CheckpointError
from streaming.manifest import OnFlaw, refuse
from streaming.messages import BlobVersion

if TYPE_CHECKING:
    from streaming.pipeline import Bytes, RangeReader


class Verified:
    """A reader of blocks that are what they were.

    Args:
        reader: Where the bytes come from.
        again: Where they are asked for once more after a mismatch: not out of the cache that may hold the wrong ones.
        digests: By shard; what is read of others is counted, and passed on.
        counters: Counts bytes and mismatches.
        place: Where the shards lie, for messages.
        on_flaw: Told of blocks that were wrong twice; when it returns, they are passed on.
    """

    def __init__(
        self,
        reader: RangeReader,
        digests: Mapping[str, BlockDigests],
        counters: FetchCounters,
        *,
        again: RangeReader,
        place: object,
        on_flaw: OnFlaw = refuse,
    ):
        self._reader = reader
        self._again = again
        self._digests = digests
        self._counters = counters
        self._place = place
        self._on_flaw = on_flaw

    async def read_range(self, version: BlobVersion, start: int, end: int) -> Bytes:
        """Bytes `[start, end)`, whole blocks where the shard has digests.

        Raises:
            CheckpointError: A block came twice with another digest, and `on_flaw` raised that.
            SourceError: They could not be read.
        """
        blocks = self._digests.get(version.name)
        if blocks is None:
            data = await self._reader.read_range(version, start, end)
            self._counters.unverified_bytes += end - start
            return data
        readers = self._reader, self._again
        data, wrong = await read_checked(readers, version, start, end, blocks, self._counters)
        if wrong:
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            self._on_flaw(
                CheckpointError(
                    f"{self._place}/{version.name} {wrong[0]}{more}, and so when read again: "
                    "the blob is damaged, or was uploaded after the manifest: push again"
                )
            )
        return data


async def read_checked(
    readers: Sequence[RangeReader],
    version: BlobVersion,
    start: int,
    end: int,
    blocks: BlockDigests,
    counters: FetchCounters,
) -> tuple[Bytes, list[Mismatch]]:
    """Whole blocks `[start, end)` from the first reader whose bytes are the right ones; from the last one, what was wrong."""
    for reader in readers:
        data = await reader.read_range(version, start, end)
        wrong = await asyncio.to_thread(mismatches, memoryview(data), start, blocks)
        counters.mismatches += len(wrong)
        if not wrong:
            counters.verified_bytes += end - start
            break
    return data, wrong
