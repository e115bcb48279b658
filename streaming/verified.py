"""Reads of whole blocks, compared with their digests before anybody uses them.

Takes what was read, block digests by shard and a reader to ask again. The digests are computed in threads: they give up the GIL,
and the event loop has other lanes to wake. Knows no manifest, no chunk and no arena.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

from streaming.blocks import BlockDigests
from streaming.counters import FetchCounters
from streaming.digests import Mismatch, mismatches
from streaming.errors import CheckpointError
from streaming.manifest import OnFlaw, refuse
from streaming.messages import BlobVersion

if TYPE_CHECKING:
    from streaming.pipeline import Bytes, RangeReader


class Verification:
    """Of one load's reads.

    Args:
        digests: By shard; what is read of others is counted, and passed on.
        counters: Counts bytes and mismatches.
        again: Where bytes are asked for once more after a mismatch: not out of the cache that may hold the wrong ones.
        place: Where the shards lie, for messages.
        on_flaw: Told of blocks that were wrong twice; when it returns, they are passed on.
    """

    def __init__(
        self,
        digests: Mapping[str, BlockDigests],
        counters: FetchCounters,
        *,
        again: RangeReader,
        place: object,
        on_flaw: OnFlaw = refuse,
    ):
        self._digests = digests
        self._counters = counters
        self._again = again
        self._place = place
        self._on_flaw = on_flaw

    async def check(self, version: BlobVersion, start: int, end: int, data: Bytes) -> Bytes:
        """Bytes `[start, end)`, whole blocks where the shard has digests: `data`, or another read's if it is wrong.

        Raises:
            CheckpointError: A block came twice with another digest, and `on_flaw` raised that.
            SourceError: They could not be read again.
        """
        blocks = self._digests.get(version.name)
        if blocks is None:
            self._counters.unverified_bytes += end - start
            return data
        wrong = await self._mismatches(data, start, blocks)
        if wrong:
            del data  # or it would be held beside the other one
            data = await self._again.read_range(version, start, end)
            wrong = await self._mismatches(data, start, blocks)
        if wrong:
            self._tell(version, wrong)
            self._counters.unverified_bytes += end - start
        else:
            self._counters.verified_bytes += end - start
        return data

    async def _mismatches(self, data: Bytes, start: int, blocks: BlockDigests) -> list[Mismatch]:
        wrong = await asyncio.to_thread(mismatches, memoryview(data), start, blocks)
        self._counters.mismatches += len(wrong)
        return wrong

    def _tell(self, version: BlobVersion, wrong: list[Mismatch]) -> None:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        self._on_flaw(
            CheckpointError(
                f"{self._place}/{version.name} {wrong[0]}{more}, and so when read again: "
                "the blob is damaged, or was uploaded after the manifest: push again"
            )
        )
