"""Entries and a layout to addresses, ranged reads and copies: pure, no I/O.

Addresses: each group starts at a multiple of 256 bytes, its members lie packed behind one another, so
that the engine sees one matrix. Reads: chunks of at most `chunk_bytes` that cross tensor borders but never
a gap, cut between elements, interleaved over the shards so that every blob's request limit is shared.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from streaming.dtypes import BITS, nbytes
from streaming.errors import CheckpointError
from streaming.messages import BlobVersion, Chunk, Entry, Extent, Group, Layout, Plan, Segment, TensorLayout

ALIGNMENT_BYTES = 256
# Dtypes that the slot can turn into one another; see `streaming.cast`.
CASTABLE = frozenset({"F64", "F32", "F16", "BF16"})


def plan_load(entries: Sequence[Entry], versions: Sequence[BlobVersion], layout: Layout, *, chunk_bytes: int) -> Plan:
    """Decide every address and every read of one load.

    Raises:
        CheckpointError: The layout names a tensor that the checkpoint has not, one twice, a cast between
            dtypes that have none, or a group whose members do not stack.
    """
    by_name = {entry.name: entry for entry in entries}
    tensors = {tensor.stored_name: tensor for tensor in layout.tensors}
    _check_layout(by_name, layout, tensors)
    extents, arena_bytes = place(by_name, tensors, layout.groups)
    chunks = _chunks(by_name, layout.tensors, extents, chunk_bytes)
    used = {chunk.shard for chunk in chunks}
    return Plan(
        arena_bytes=arena_bytes,
        extents=extents,
        chunks=tuple(chunks),
        versions=tuple(version for version in versions if version.name in used),
        rank=layout.origin.rank,
        ranks=layout.origin.ranks,
    )


def place(
    by_name: dict[str, Entry], tensors: dict[str, TensorLayout], groups: Sequence[Group]
) -> tuple[dict[str, Extent], int]:
    """Extents by stored name and by group name, and the arena's size in bytes."""
    grouped = {member for group in groups for member in group.members}
    alone = (Group(name, (name,)) for name in tensors if name not in grouped)
    extents: dict[str, Extent] = {}
    at = 0
    for group in itertools.chain(groups, alone):
        start = at = -(-at // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        for member in group.members:
            extents[member] = _extent(by_name[tensors[member].source_name], tensors[member].dtype, at)
            at += extents[member].nbytes
        if group.members != (group.name,):
            extents[group.name] = _stacked([extents[member] for member in group.members], start, at - start)
    return extents, at


def _extent(entry: Entry, dtype: str, start: int) -> Extent:
    size = nbytes(dtype, math.prod(entry.shape))
    assert size is not None  # castable dtypes fill whole bytes, and the header was checked
    return Extent(dtype, entry.shape, start, size)


def _stacked(members: Sequence[Extent], start: int, size: int) -> Extent:
    first = members[0]
    return Extent(first.dtype, (sum(member.shape[0] for member in members), *first.shape[1:]), start, size)


def _check_layout(by_name: dict[str, Entry], layout: Layout, tensors: dict[str, TensorLayout]) -> None:
    if len(tensors) != len(layout.tensors):
        raise CheckpointError("the layout stores two tensors under one name")
    for tensor in layout.tensors:
        entry = by_name.get(tensor.source_name)
        if entry is None:
            raise CheckpointError(f"the model needs {tensor.source_name!r}, which no shard holds")
        if tensor.dtype != entry.dtype and not {tensor.dtype, entry.dtype} <= CASTABLE:
            raise CheckpointError(f"{entry.shard}: {entry.name!r} cannot be cast from {entry.dtype} to {tensor.dtype}")
    for group in layout.groups:
        kinds = {(tensors[name].dtype, by_name[tensors[name].source_name].shape[1:]) for name in group.members}
        if len(kinds) != 1 or any(not by_name[tensors[name].source_name].shape for name in group.members):
            raise CheckpointError(f"the tensors of {group.name!r} differ in dtype or shape, so they cannot be fused")


def _chunks(
    by_name: dict[str, Entry], layout: Iterable[TensorLayout], extents: dict[str, Extent], chunk_bytes: int
) -> list[Chunk]:
    wanted = sorted(
        ((by_name[tensor.source_name], extents[tensor.stored_name]) for tensor in layout),
        key=lambda pair: (pair[0].shard, pair[0].start),
    )
    per_shard = [
        list(_shard_reads(list(pairs), chunk_bytes))
        for _, pairs in itertools.groupby(wanted, key=lambda pair: pair[0].shard)
    ]
    interleaved = (read for row in itertools.zip_longest(*per_shard) for read in row if read is not None)
    return [
        Chunk(number, shard, start, end, segments) for number, (shard, start, end, segments) in enumerate(interleaved)
    ]


_Read = tuple[str, int, int, tuple[Segment, ...]]


class _Piece(NamedTuple):
    """Bytes `[start, end)` of a shard, all of one tensor."""

    entry: Entry
    extent: Extent
    start: int
    end: int


def _shard_reads(pairs: Sequence[tuple[Entry, Extent]], chunk_bytes: int) -> Iterator[_Read]:
    """The reads of one shard: pieces gathered until a chunk is full or a gap begins."""
    pieces: list[_Piece] = []
    for entry, extent in pairs:
        at = entry.start
        while at < entry.end:
            if pieces and (pieces[-1].end != at or at - pieces[0].start + _width(entry) > chunk_bytes):
                yield _read(pieces)
                pieces = []
            room = chunk_bytes - (at - pieces[0].start if pieces else 0)
            end = min(at + max(room // _width(entry), 1) * _width(entry), entry.end)
            pieces.append(_Piece(entry, extent, at, end))
            at = end
    if pieces:
        yield _read(pieces)


def _width(entry: Entry) -> int:
    """Bytes that must not be cut: one element, or a byte of a packed dtype."""
    return max(1, BITS[entry.dtype] // 8)


def _read(pieces: Sequence[_Piece]) -> _Read:
    start = pieces[0].start
    return pieces[0].entry.shard, start, pieces[-1].end, tuple(_segment(piece, start) for piece in pieces)


def _segment(piece: _Piece, chunk_start: int) -> Segment:
    source_bits, stored_bits = BITS[piece.entry.dtype], BITS[piece.extent.dtype]
    return Segment(
        slot_start=piece.start - chunk_start,
        slot_nbytes=piece.end - piece.start,
        arena_start=piece.extent.start + (piece.start - piece.entry.start) * stored_bits // source_bits,
        arena_nbytes=(piece.end - piece.start) * stored_bits // source_bits,
        source_dtype=piece.entry.dtype,
        stored_dtype=piece.extent.dtype,
    )
