"""Entries and a layout to addresses, ranged reads and copies: pure, no I/O.

Addresses: each group starts at a multiple of 256 bytes, its members lie packed behind one another, so
that the engine sees one matrix. Reads: chunks of at most `chunk_bytes` that cross tensor borders but never
a gap, cut between elements, interleaved over the shards so that every blob's request limit is shared. Of a shard
with block digests whole blocks are read instead, so that each read can be verified; what no tensor wants of them lands nowhere.
"""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from streaming.blocks import BlockDigests
from streaming.dtypes import BITS, nbytes
from streaming.errors import CheckpointError
from streaming.messages import BlobVersion, Chunk, Entry, Extent, Group, Layout, Plan, Segment, TensorLayout

ALIGNMENT_BYTES = 256
# Dtypes that the slot can turn into one another; see `streaming.cast`.
CASTABLE = frozenset({"F64", "F32", "F16", "BF16"})


def plan_load(
    entries: Sequence[Entry],
    versions: Sequence[BlobVersion],
    layout: Layout,
    *,
    chunk_bytes: int,
    digests: Mapping[str, BlockDigests] | None = None,
) -> Plan:
    """Decide every address and every read of one load.

    Args:
        entries: Every tensor of the checkpoint.
        versions: Every shard.
        layout: What to land, and how.
        chunk_bytes: The most that one read asks for; a read of blocks takes at least one, whatever its size.
        digests: By shard. One that holds a tensor to cast whose elements lie across block borders is read without:
            the plan's `digests` do not name it.

    Raises:
        CheckpointError: The layout names a tensor that the checkpoint has not, one twice, a cast between
            dtypes that have none, or a group whose members do not stack.
    """
    by_name = {entry.name: entry for entry in entries}
    tensors = {tensor.stored_name: tensor for tensor in layout.tensors}
    _check_layout(by_name, layout, tensors)
    extents, arena_bytes = place(by_name, tensors, layout.groups)
    chunks, verified = _chunks(by_name, layout.tensors, extents, chunk_bytes, digests or {})
    used = {chunk.shard for chunk in chunks}
    return Plan(
        arena_bytes=arena_bytes,
        extents=extents,
        chunks=tuple(chunks),
        versions=tuple(version for version in versions if version.name in used),
        rank=layout.origin.rank,
        ranks=layout.origin.ranks,
        digests=verified,
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
    by_name: dict[str, Entry],
    layout: Iterable[TensorLayout],
    extents: dict[str, Extent],
    chunk_bytes: int,
    digests: Mapping[str, BlockDigests],
) -> tuple[list[Chunk], dict[str, BlockDigests]]:
    """The reads of all shards, and the digests of those shards that are read in blocks."""
    wanted = sorted(
        ((by_name[tensor.source_name], extents[tensor.stored_name]) for tensor in layout),
        key=lambda pair: (pair[0].shard, pair[0].start),
    )
    verified: dict[str, BlockDigests] = {}
    per_shard: list[list[_Read]] = []
    for shard, group in itertools.groupby(wanted, key=lambda pair: pair[0].shard):
        pairs = list(group)
        blocks = digests.get(shard)
        if blocks is None or _casts_across_blocks(pairs, blocks):
            per_shard.append(list(_shard_reads(pairs, chunk_bytes)))
        else:
            verified[shard] = blocks
            per_shard.append(list(_block_reads(pairs, blocks, chunk_bytes)))
    interleaved = (read for row in itertools.zip_longest(*per_shard) for read in row if read is not None)
    chunks = [
        Chunk(number, shard, start, end, segments) for number, (shard, start, end, segments) in enumerate(interleaved)
    ]
    return chunks, verified


_Pair = tuple[Entry, Extent]
_Read = tuple[str, int, int, tuple[Segment, ...]]


class _Piece(NamedTuple):
    """Bytes `[start, end)` of a shard, all of one tensor."""

    entry: Entry
    extent: Extent
    start: int
    end: int


def _shard_reads(pairs: Sequence[_Pair], chunk_bytes: int) -> Iterator[_Read]:
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


def _block_reads(pairs: Sequence[_Pair], blocks: BlockDigests, chunk_bytes: int) -> Iterator[_Read]:
    """The reads of one shard in whole blocks: neighbours together, as many as fit a chunk."""
    spans = _block_spans(pairs, blocks, max(1, chunk_bytes // blocks.block_bytes))
    waiting = collections.deque(pair for pair in pairs if pair[0].start < pair[0].end)
    begun: list[_Pair] = []
    for start, end in spans:
        begun = [pair for pair in begun if pair[0].end > start]
        while waiting and waiting[0][0].start < end:
            begun.append(waiting.popleft())
        pieces = (_Piece(entry, extent, max(entry.start, start), min(entry.end, end)) for entry, extent in begun)
        yield begun[0][0].shard, start, end, tuple(_segment(piece, start) for piece in pieces)


def _block_spans(pairs: Sequence[_Pair], blocks: BlockDigests, most: int) -> Iterator[tuple[int, int]]:
    """Runs `[start, end)` of at most so many consecutive blocks that together hold every wanted byte."""
    needed = sorted(
        {
            number
            for entry, _ in pairs
            if entry.start < entry.end
            for number in range(blocks.block_at(entry.start), blocks.block_at(entry.end - 1) + 1)
        }
    )
    for _, run in itertools.groupby(enumerate(needed), key=lambda place: place[1] - place[0]):
        numbers = [number for _, number in run]
        for at in range(0, len(numbers), most):
            part = numbers[at : at + most]
            yield blocks.bounds(part[0])[0], blocks.bounds(part[-1])[1]


def _casts_across_blocks(pairs: Sequence[_Pair], blocks: BlockDigests) -> bool:
    """Whether a block border may cut an element that is to be cast; a plain copy does not mind."""
    return any(
        entry.dtype != extent.dtype and (entry.start - blocks.data_start) % _width(entry) for entry, extent in pairs
    )


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
