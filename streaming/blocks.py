"""How a blob is cut into blocks, and the digest of each: a small message, whatever the blob's size.

Computes no digest and knows no file format but that a header may precede the data.
"""

from __future__ import annotations

import msgspec

# Of one block, most significant byte first.
CRC_BYTES = 8


class BlockDigests(msgspec.Struct, frozen=True, array_like=True):
    """The CRC-64/NVME of every block of one blob; 8 bytes for each, so that a large plan stays a small message.

    Block 0 of a blob whose `data_start` is not 0 is `[0, data_start)`; from there on a block has `block_bytes`.
    """

    size_bytes: int
    data_start: int
    block_bytes: int
    crcs: bytes

    @property
    def count(self) -> int:
        """How many blocks there are."""
        return bool(self.data_start) + -(-(self.size_bytes - self.data_start) // self.block_bytes)

    def block_at(self, offset: int) -> int:
        """The number of the block that holds this byte."""
        if offset < self.data_start:
            return 0
        return bool(self.data_start) + (offset - self.data_start) // self.block_bytes

    def bounds(self, number: int) -> tuple[int, int]:
        """The bytes `[start, end)` of one block."""
        if self.data_start and number == 0:
            return 0, self.data_start
        start = self.data_start + (number - bool(self.data_start)) * self.block_bytes
        return start, min(start + self.block_bytes, self.size_bytes)

    def crc(self, number: int) -> int:
        """The digest of one block."""
        return int.from_bytes(self.crcs[number * CRC_BYTES : (number + 1) * CRC_BYTES], "big")
