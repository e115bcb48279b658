"""streaming.verified: who is asked again, what is counted, and what is let pass."""

from __future__ import annotations

import asyncio

import pytest

from streaming.blocks import CRC_BYTES, BlockDigests
from streaming.counters import FetchCounters
from streaming.digests import crc64nvme
from streaming.errors import CheckpointError
from streaming.messages import BlobVersion
from streaming.verified import Verification

CONTENT = bytes(range(100))
CUT = BlockDigests(100, 10, 32, b"")
CRCS = b"".join(
    crc64nvme(CONTENT[slice(*CUT.bounds(number))]).to_bytes(CRC_BYTES, "big") for number in range(CUT.count)
)
BLOCKS = BlockDigests(100, 10, 32, CRCS)
SHARD = BlobVersion("s", 100, None)


class Reader:
    """Bytes in memory, of which some are wrong; remembers what it was asked for."""

    def __init__(self, *wrong: int):
        self._content = bytes(byte ^ (at in wrong) for at, byte in enumerate(CONTENT))
        self.reads = []

    async def read_range(self, version, start, end):
        """The bytes, as bad as they are."""
        self.reads.append((version.name, start, end))
        return self._content[start:end]


def read(first, again, start, end, *, digests=None, **options):
    """What a checked read gives, and what was counted."""
    counters = FetchCounters()
    digests = {"s": BLOCKS} if digests is None else digests
    verification = Verification(digests, counters, again=again, place="az://c", **options)

    async def checked():
        return await verification.check(SHARD, start, end, await first.read_range(SHARD, start, end))

    return asyncio.run(checked()), counters


def test_sound_blocks_are_read_once():
    """Bytes that are right pass, are counted, and nobody is asked twice."""
    first, again = Reader(), Reader()
    data, counters = read(first, again, 10, 100)
    assert data == CONTENT[10:]
    assert (first.reads, again.reads) == ([("s", 10, 100)], [])
    assert (counters.verified_bytes, counters.unverified_bytes, counters.mismatches) == (90, 0, 0)


def test_a_mismatch_is_asked_for_behind_the_cache():
    """The second read goes where no cache answers, and its bytes are what is given."""
    first, again = Reader(50), Reader()
    data, counters = read(first, again, 42, 74)
    assert data == CONTENT[42:74]
    assert (first.reads, again.reads) == ([("s", 42, 74)], [("s", 42, 74)])
    assert (counters.verified_bytes, counters.mismatches) == (32, 1)


def test_a_block_that_is_wrong_twice_is_refused():
    """The error names blob, block and both digests, and how many others differ."""
    wrong = f"{crc64nvme(CONTENT[42:50] + bytes([51]) + CONTENT[51:74]):016x} instead of {BLOCKS.crc(2):016x}"
    with pytest.raises(CheckpointError) as raised:
        read(Reader(50, 80), Reader(50, 80), 10, 100)
    assert str(raised.value).startswith(f"az://c/s [42, 74): CRC-64/NVME {wrong} (and 1 more)")
    assert raised.value.exit_code == 4


def test_what_is_let_pass_is_not_counted_as_verified():
    """Where a flaw is told instead of raised, the bytes pass as they are."""
    told = []
    data, counters = read(Reader(50), Reader(50), 10, 100, on_flaw=told.append)
    assert data[40] == 51
    assert ["az://c/s [42, 74)" in str(flaw) for flaw in told] == [True]
    assert (counters.verified_bytes, counters.unverified_bytes, counters.mismatches) == (0, 90, 2)


def test_a_shard_without_digests_is_counted():
    """What cannot be compared passes, in whatever pieces."""
    data, counters = read(Reader(5), Reader(), 3, 7, digests={})
    assert data == bytes([3, 4, 4, 6])
    assert (counters.unverified_bytes, counters.verified_bytes, counters.mismatches) == (4, 0, 0)
