"""Which blocks of the KV cache are free, and which one a growing sequence gets next.

Pure bookkeeping over block numbers; knows neither sequences nor tensors.
"""

from __future__ import annotations

import heapq


class BlockAllocator:
    """Hands out blocks so that a sequence's blocks tend to lie in a row.

    Attention reads a run of blocks as a view and must gather scattered ones (for 1,000 tokens the gather
    costs as much as the attention itself). So a sequence grows into the next block while that is free, and
    new sequences start as far from each other as possible: at 0, 1/2, 1/4, 3/4, 1/8... of the cache.

    Args:
        num_blocks: Blocks `0` to `num_blocks - 1` exist.
    """

    def __init__(self, num_blocks: int):
        self.num_blocks = num_blocks
        self._free = set(range(num_blocks))
        bits = max(1, (num_blocks - 1).bit_length())
        self._rank = [_reversed_bits(block, bits) for block in range(num_blocks)]
        # May hold blocks that are taken (as somebody's next in a row): `_start` skips them.
        self._starts = sorted((rank, block) for block, rank in enumerate(self._rank))
        self._in_starts = set(self._free)

    @property
    def num_free(self) -> int:
        """How many blocks `allocate` can still give."""
        return len(self._free)

    def allocate(self, count: int, *, after: int | None) -> list[int]:
        """Take `count` blocks, in a row from `after + 1` where possible.

        Raises:
            ValueError: Fewer than `count` are free.
        """
        if count > len(self._free):
            raise ValueError(f"{count} blocks asked for, {len(self._free)} free")
        taken: list[int] = []
        for _ in range(count):
            block = after + 1 if after is not None and after + 1 in self._free else self._start()
            self._free.remove(block)
            taken.append(block)
            after = block
        return taken

    def free(self, blocks: list[int]) -> None:
        """Give blocks back.

        Raises:
            ValueError: One of them is free already.
        """
        for block in blocks:
            if block in self._free:
                raise ValueError(f"block {block} is free already")
            self._free.add(block)
            if block not in self._in_starts:
                self._in_starts.add(block)
                heapq.heappush(self._starts, (self._rank[block], block))

    def _start(self) -> int:
        while True:
            _, block = heapq.heappop(self._starts)
            self._in_starts.remove(block)
            if block in self._free:
                return block


def _reversed_bits(value: int, bits: int) -> int:
    return int(f"{value:0{bits}b}"[::-1], 2)
