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
        self._rank = _reversed_bits((num_blocks - 1).bit_length())
        # Reversing twice changes nothing, so a rank's block is its reverse. May hold blocks that are taken (as
        # somebody's next in a row): `_start` skips them.
        self._starts = [(rank, block) for rank, block in enumerate(self._rank) if block < num_blocks]
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


def _reversed_bits(bits: int) -> list[int]:
    """Every number of so many bits with its bits in reverse order."""
    reverses = [0]
    for _ in range(bits):
        reverses = [2 * reverse for reverse in reverses] + [2 * reverse + 1 for reverse in reverses]
    return reverses
