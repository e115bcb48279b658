"""Which ranges of a blob are there, and what each must hash to.

A record is four 64-bit numbers, little-endian: start, end, the CRC-64/NVME of the bytes `[start, end)`, and one of
the record itself that begins with the blob's key, so that a torn record or one of another blob is none. Pure.
"""

from __future__ import annotations

import bisect
import struct
from collections.abc import Iterator
from typing import NamedTuple

from streaming.digests import crc64nvme

_FIELDS = struct.Struct("<QQQ")
_RECORD = struct.Struct("<QQQQ")
RECORD_BYTES = _RECORD.size


class Range(NamedTuple):
    """Bytes `[start, end)` of a blob, and their CRC-64/NVME."""

    start: int
    end: int
    crc: int

    def is_of(self, data: bytes | memoryview) -> bool:
        """Whether `data` is what was written."""
        return len(data) == self.end - self.start and crc64nvme(data) == self.crc


def encode(key_digest: bytes, found: Range) -> bytes:
    """The record of a range."""
    return _RECORD.pack(*found, _check(key_digest, _FIELDS.pack(*found)))


def decode(key_digest: bytes, size_bytes: int, data: bytes) -> Iterator[Range]:
    """Every range that whole records of this blob name; what is none is passed over."""
    whole = data[: len(data) - len(data) % RECORD_BYTES]
    for start, end, crc, check in _RECORD.iter_unpack(whole):
        is_range = start < end <= size_bytes
        if is_range and check == _check(key_digest, _FIELDS.pack(start, end, crc)):
            yield Range(start, end, crc)


def _check(key_digest: bytes, fields: bytes) -> int:
    return int(crc64nvme(key_digest + fields))


class Index:
    """The ranges of one blob; of two that are equal in extent, the later one counts."""

    def __init__(self) -> None:
        self._crcs: dict[tuple[int, int], int] = {}
        self._extents: list[tuple[int, int]] = []  # in order: a blob may have ten thousands
        self._longest_bytes = 0

    def add(self, found: Range) -> None:
        """Know one more."""
        extent = found.start, found.end
        if extent not in self._crcs:
            bisect.insort(self._extents, extent)
            self._longest_bytes = max(self._longest_bytes, found.end - found.start)
        self._crcs[extent] = found.crc

    def has(self, found: Range) -> bool:
        """Whether exactly this is known."""
        return self._crcs.get((found.start, found.end)) == found.crc

    def drop(self, found: Range) -> None:
        """It was not what it should have been; a later one of its extent stays."""
        if self.has(found):
            del self._crcs[found.start, found.end]
            self._extents.remove((found.start, found.end))

    def covering(self, start: int, end: int) -> list[Range]:
        """Ranges that together hold all of `[start, end)`, in order, each reaching further; none if they cannot."""
        first = bisect.bisect_left(self._extents, (start - self._longest_bytes,))
        near = self._extents[first : bisect.bisect_left(self._extents, (end,))]
        chosen: list[Range] = []
        reached = start
        while reached < end:
            best = max((extent for extent in near if extent[0] <= reached), key=lambda extent: extent[1], default=None)
            if best is None or best[1] <= reached:
                return []
            chosen.append(Range(*best, self._crcs[best]))
            reached = best[1]
        return chosen
