"""Which ranges of a blob are there, and what each must hash to.

A record is four 64-bit numbers, little-endian: start, end, the CRC-64/NVME of the bytes `[start, end)`, and one of
the record itself that begins with the blob's key, so that a torn record or one of another blob is none. Pure.
"""

from __future__ import annotations

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
        self._ranges: dict[tuple[int, int], Range] = {}

    def add(self, found: Range) -> None:
        """Know one more."""
        self._ranges[found.start, found.end] = found

    def has(self, found: Range) -> bool:
        """Whether exactly this is known."""
        return self._ranges.get((found.start, found.end)) == found

    def drop(self, found: Range) -> None:
        """It was not what it should have been; a later one of its extent stays."""
        if self.has(found):
            del self._ranges[found.start, found.end]

    def covering(self, start: int, end: int) -> list[Range]:
        """Ranges that together hold all of `[start, end)`, in order, each reaching further; none if they cannot."""
        near = sorted(found for found in self._ranges.values() if found.start < end and found.end > start)
        chosen: list[Range] = []
        reached = start
        while reached < end:
            best = max((found for found in near if found.start <= reached), key=lambda found: found.end, default=None)
            if best is None or best.end <= reached:
                return []
            chosen.append(best)
            reached = best.end
        return chosen
