"""Which blocks of the KV cache are free, which one a growing sequence gets next, and what free ones still hold.

Pure bookkeeping over block numbers; knows neither sequences nor tensors. What a block holds is named by a digest that its
user gives.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict


class BlockAllocator:
    """Hands out blocks so that a sequence's blocks tend to lie in a row.

    On a CPU, attention reads a run of blocks as a view and must gather scattered ones (for 1,000 tokens the gather
    costs as much as the attention itself); a GPU's kernels do not care. So a sequence grows into the next block while that is free, and
    new sequences start as far from each other as possible: at 0, 1/2, 1/4, 3/4, 1/8... of the cache. A block with
    content that was named is taken last, the longest unused one first, until when it can be shared again.

    Args:
        num_blocks: Blocks `0` to `num_blocks - 1` exist.
    """

    def __init__(self, num_blocks: int):
        self.num_blocks = num_blocks
        self._owners: Counter[int] = Counter()
        self._empty = set(range(num_blocks))
        self._idle: OrderedDict[int, None] = OrderedDict()  # free, with content; the longest unused one first
        self._blocks: dict[bytes, int] = {}
        self._digests: dict[int, bytes] = {}
        self._rank = _reversed_bits((num_blocks - 1).bit_length())
        # Reversing twice changes nothing, so a rank's block is its reverse. May hold blocks that are not empty (as
        # somebody's next in a row): `_start` skips them.
        self._starts = [(rank, block) for rank, block in enumerate(self._rank) if block < num_blocks]
        self._in_starts = set(self._empty)

    @property
    def num_free(self) -> int:
        """How many blocks `allocate` can still give."""
        return len(self._empty) + len(self._idle)

    def allocate(self, count: int, *, after: int | None) -> list[int]:
        """Take `count` blocks, in a row from `after + 1` where possible; what they held is forgotten.

        Raises:
            ValueError: Fewer than `count` are free.
        """
        if count > self.num_free:
            raise ValueError(f"{count} blocks asked for, {self.num_free} free")
        taken: list[int] = []
        for _ in range(count):
            after = self._take(after)
            self._owners[after] = 1
            taken.append(after)
        return taken

    def name(self, block: int, digest: bytes) -> None:
        """Say what a taken block holds; where another block holds the same, that one stays the one to be found."""
        if digest not in self._blocks and block not in self._digests:
            self._blocks[digest] = block
            self._digests[block] = digest

    def find(self, digest: bytes) -> int | None:
        """The block that holds this, free or taken."""
        return self._blocks.get(digest)

    def is_free(self, block: int) -> bool:
        """Whether nobody has it."""
        return not self._owners[block]

    def share(self, block: int) -> None:
        """Have a named block, beside whoever has it already."""
        self._idle.pop(block, None)
        self._owners[block] += 1

    def forget(self, block: int) -> None:
        """Let nobody find this block's content any more."""
        digest = self._digests.pop(block, None)
        if digest is not None:
            del self._blocks[digest]
            if block in self._idle:
                del self._idle[block]
                self._empty_out(block)

    def free(self, blocks: list[int]) -> None:
        """Give blocks back, each by one of its owners; the last ones are needed again first.

        Raises:
            ValueError: One of them is free already.
        """
        for block in reversed(blocks):
            if not self._owners[block]:
                raise ValueError(f"block {block} is free already")
            self._owners[block] -= 1
            if self._owners[block]:
                continue
            if block in self._digests:
                self._idle[block] = None
            else:
                self._empty_out(block)

    def _take(self, after: int | None) -> int:
        if after is not None and after + 1 in self._empty:
            self._empty.remove(after + 1)
            return after + 1
        if self._empty:
            return self._start()
        block, _ = self._idle.popitem(last=False)
        del self._blocks[self._digests.pop(block)]
        return block

    def _empty_out(self, block: int) -> None:
        self._empty.add(block)
        if block not in self._in_starts:
            self._in_starts.add(block)
            heapq.heappush(self._starts, (self._rank[block], block))

    def _start(self) -> int:
        while True:
            _, block = heapq.heappop(self._starts)
            self._in_starts.remove(block)
            if block in self._empty:
                self._empty.remove(block)
                return block


def _reversed_bits(bits: int) -> list[int]:
    """Every number of so many bits with its bits in reverse order."""
    reverses = [0]
    for _ in range(bits):
        reverses = [2 * reverse for reverse in reverses] + [2 * reverse + 1 for reverse in reverses]
    return reverses
