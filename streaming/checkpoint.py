"""Index and safetensors headers to tensor entries; everything is validated before a weight moves.

Takes bytes, gives entries; reads nothing itself and knows no address. A message names the shard and the
tensor at fault. The format: 8 bytes of little-endian length, that many bytes of JSON, then the tensors'
bytes without a gap.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from typing import Any

import msgspec

from streaming.dtypes import BITS, nbytes
from streaming.errors import CheckpointError
from streaming.messages import Entry

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

LENGTH_BYTES = 8
# The limit of the reference implementation.
_MAX_HEADER_BYTES = 100_000_000


def parse_index(data: bytes) -> dict[str, str]:
    """Shard file names by tensor name.

    Raises:
        CheckpointError: Not JSON, or no `weight_map` of names to file names.
    """
    try:
        weight_map = msgspec.json.decode(data)["weight_map"]
        return msgspec.convert(weight_map, dict[str, str])
    except (msgspec.MsgspecError, KeyError, TypeError) as error:
        raise CheckpointError(f"{INDEX_NAME}: no weight_map of tensor names to shards: {error}") from error


def header_end(shard: str, prefix: bytes, size_bytes: int) -> int:
    """Where the header of a shard ends and its data starts, in bytes of the blob.

    Args:
        shard: The blob's name, for messages.
        prefix: At least the first 8 bytes, if the blob has that many.
        size_bytes: The blob's size.

    Raises:
        CheckpointError: Too short to be a shard, or a length beyond the file.
    """
    if size_bytes < LENGTH_BYTES or len(prefix) < LENGTH_BYTES:
        raise CheckpointError(
            f"{shard}: {size_bytes} bytes are too few for a safetensors file: is the upload complete?"
        )
    (header_bytes,) = struct.unpack("<Q", prefix[:LENGTH_BYTES])
    if header_bytes > _MAX_HEADER_BYTES or LENGTH_BYTES + header_bytes > size_bytes:
        raise CheckpointError(
            f"{shard}: its header claims {header_bytes} bytes, the file has {size_bytes}: "
            "truncated, or not a safetensors file"
        )
    return int(LENGTH_BYTES + header_bytes)


def parse_header(shard: str, header: bytes, size_bytes: int) -> tuple[Entry, ...]:
    """The tensors of one shard, in address order.

    Args:
        shard: The blob's name.
        header: The JSON alone, without its length.
        size_bytes: The blob's size.

    Raises:
        CheckpointError: Not JSON, unknown dtype, shape and bytes disagree, overlap, gap, or a size that is
            not the blob's.
    """
    data_start = LENGTH_BYTES + len(header)
    entries = sorted(
        (
            _entry(shard, name, raw, data_start)
            for name, raw in _decode(shard, header).items()
            if name != "__metadata__"
        ),
        key=lambda entry: (entry.start, entry.end),
    )
    _check_contiguous(shard, entries, data_start, size_bytes)
    return tuple(entries)


def select(weight_map: dict[str, str], entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """The entries that the index names; a copy in a shard that it does not name is not the tensor.

    Raises:
        CheckpointError: The index places a tensor in a shard that does not hold it.
    """
    by_place = {(entry.name, entry.shard): entry for entry in entries}
    for place in weight_map.items():
        if place not in by_place:
            name, shard = place
            raise CheckpointError(f"{INDEX_NAME} places {name!r} in {shard}, which does not hold it")
    return tuple(by_place[place] for place in weight_map.items())


def unique(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """The entries of a checkpoint without an index.

    Raises:
        CheckpointError: Two shards hold a tensor of one name.
    """
    by_name: dict[str, Entry] = {}
    for entry in entries:
        if other := by_name.get(entry.name):
            raise CheckpointError(f"{entry.name!r} is both in {other.shard} and in {entry.shard}, and no index decides")
        by_name[entry.name] = entry
    return tuple(by_name.values())


def _decode(shard: str, header: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(header, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{shard}: its header is not a JSON object: {error}") from error


class _RawEntry(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def _entry(shard: str, name: str, raw: Any, data_start: int) -> Entry:
    where = f"{shard}: tensor {name!r}"
    try:
        parsed = msgspec.convert(raw, _RawEntry)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{where}: {error}") from error
    if parsed.dtype not in BITS:
        raise CheckpointError(f"{where}: unknown dtype {parsed.dtype!r}")
    start, end = parsed.data_offsets
    if start < 0 or end < start or any(size < 0 for size in parsed.shape):
        raise CheckpointError(
            f"{where}: offsets [{start}, {end}) or shape {list(parsed.shape)} are negative or reversed"
        )
    expected_bytes = nbytes(parsed.dtype, math.prod(parsed.shape))
    if expected_bytes != end - start:
        raise CheckpointError(
            f"{where}: shape {list(parsed.shape)} of {parsed.dtype} takes {expected_bytes} bytes, "
            f"its offsets span {end - start}"
        )
    return Entry(name, parsed.dtype, parsed.shape, shard, data_start + start, data_start + end)


def _check_contiguous(shard: str, entries: list[Entry], data_start: int, size_bytes: int) -> None:
    at = data_start
    for entry in entries:
        if entry.start != at:
            flaw = "overlaps the one before it" if entry.start < at else "leaves a gap before it"
            raise CheckpointError(f"{shard}: tensor {entry.name!r} {flaw} (byte {entry.start}, expected {at})")
        at = entry.end
    if at != size_bytes:
        flaw = "truncated" if at > size_bytes else "followed by bytes that no tensor owns"
        raise CheckpointError(f"{shard}: {flaw}: its tensors end at byte {at}, the file has {size_bytes}")
