"""streaming.plan: the plan covers every byte once, never cuts an element, and lays groups side by side."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.blocks import BlockDigests
from streaming.dtypes import BITS
from streaming.errors import CheckpointError
from streaming.messages import BlobVersion, Entry, Group, Layout, Origin, TensorLayout
from streaming.plan import ALIGNMENT_BYTES, plan_load

ORIGIN = Origin(arena_id="test")
FLOATS = ("F64", "F32", "F16", "BF16")


def make_entries(kinds):
    """Entries packed into shards behind headers of 100 bytes: (shard, dtype, elements) each."""
    ends: dict[str, int] = {}
    entries = []
    for number, (shard, dtype, elements) in enumerate(kinds):
        start = ends.get(shard, 100)
        ends[shard] = start + BITS[dtype] // 8 * elements
        entries.append(Entry(f"t{number}", dtype, (elements,), shard, start, ends[shard]))
    return entries


@st.composite
def loads(draw):
    """Entries, a layout with casts, renames, omissions and groups, and a chunk size."""
    kinds = st.tuples(st.sampled_from("abc"), st.sampled_from((*FLOATS, "I64", "U8", "BOOL")), st.integers(0, 300))
    entries = make_entries(draw(st.lists(kinds, min_size=1, max_size=12)))
    tensors = [
        TensorLayout(e.name, f"stored.{e.name}", draw(st.sampled_from(FLOATS)) if e.dtype in FLOATS else e.dtype)
        for e in entries
        if draw(st.booleans())
    ]
    by_dtype: dict[str, list[str]] = {}
    for tensor in tensors:
        if draw(st.booleans()):
            by_dtype.setdefault(tensor.dtype, []).append(tensor.stored_name)
    groups = tuple(Group(f"group.{dtype}", tuple(names)) for dtype, names in by_dtype.items() if len(names) > 1)
    chunk_bytes = draw(st.integers(8, 600))
    return entries, Layout(origin=ORIGIN, tensors=tuple(tensors), groups=groups), chunk_bytes


def plan_of(entries, layout, chunk_bytes):
    versions = [BlobVersion(shard, 1 << 20, None) for shard in sorted({entry.shard for entry in entries})]
    return plan_load(entries, versions, layout, chunk_bytes=chunk_bytes)


@given(loads())
def test_every_wanted_byte_is_read_once_and_lands_once(load):
    """The segments partition the wanted tensors' bytes, both in the shards and in the arena."""
    entries, layout, _ = load
    plan = plan_of(*load)
    by_name = {entry.name: entry for entry in entries}
    read = sorted(
        (chunk.shard, chunk.start + s.slot_start, chunk.start + s.slot_start + s.slot_nbytes)
        for chunk in plan.chunks
        for s in chunk.segments
    )
    assert all(one[0] != two[0] or one[2] <= two[1] for one, two in itertools.pairwise(read))
    wanted = [by_name[tensor.source_name] for tensor in layout.tensors]
    assert sum(end - start for _, start, end in read) == sum(entry.end - entry.start for entry in wanted)
    assert sum(chunk.end - chunk.start for chunk in plan.chunks) == sum(end - start for _, start, end in read)
    landed = sorted((s.arena_start, s.arena_start + s.arena_nbytes) for c in plan.chunks for s in c.segments)
    assert all(one[1] <= two[0] for one, two in itertools.pairwise(landed))
    extents = [plan.extents[tensor.stored_name] for tensor in layout.tensors]
    assert sum(end - start for start, end in landed) == sum(extent.nbytes for extent in extents)
    assert all(end <= plan.arena_bytes for _, end in landed)


@given(loads())
def test_a_simulated_load_puts_every_element_at_its_address(load):
    """Following the plan element by element brings each tensor to its extent, in order."""
    entries, layout, _ = load
    plan = plan_of(*load)
    by_name = {entry.name: entry for entry in entries}
    arena: dict[int, tuple[str, int]] = {}
    for chunk in plan.chunks:
        for s in chunk.segments:
            source_width, stored_width = BITS[s.source_dtype] // 8, BITS[s.stored_dtype] // 8
            assert s.slot_nbytes % source_width == 0
            for i in range(s.slot_nbytes // source_width):
                arena[s.arena_start + i * stored_width] = (chunk.shard, chunk.start + s.slot_start + i * source_width)
    for tensor in layout.tensors:
        entry, extent = by_name[tensor.source_name], plan.extents[tensor.stored_name]
        source_width, stored_width = BITS[entry.dtype] // 8, BITS[tensor.dtype] // 8
        for i in range(entry.shape[0]):
            assert arena[extent.start + i * stored_width] == (entry.shard, entry.start + i * source_width)


@given(loads())
def test_chunks_are_bounded_and_numbered(load):
    """No read exceeds the chunk size (of at least one element), and ids count up from 0."""
    _, _, chunk_bytes = load
    plan = plan_of(*load)
    assert all(0 < chunk.end - chunk.start <= chunk_bytes for chunk in plan.chunks)
    assert [chunk.chunk_id for chunk in plan.chunks] == list(range(len(plan.chunks)))


@given(loads())
def test_groups_are_aligned_and_packed(load):
    """A group starts at the alignment, its members follow without a gap, and its extent is their sum."""
    _, layout, _ = load
    plan = plan_of(*load)
    for group in layout.groups:
        members = [plan.extents[name] for name in group.members]
        whole = plan.extents[group.name]
        assert whole.start % ALIGNMENT_BYTES == 0
        assert whole.start == members[0].start
        assert [m.start for m in members[1:]] == [m.start + m.nbytes for m in members[:-1]]
        assert whole.nbytes == sum(m.nbytes for m in members)
        assert whole.shape == (sum(m.shape[0] for m in members),)
    alone = {t.stored_name for t in layout.tensors} - {name for group in layout.groups for name in group.members}
    assert all(plan.extents[name].start % ALIGNMENT_BYTES == 0 for name in alone)


@st.composite
def loads_in_blocks(draw):
    """A load of shards of which some have digests, in blocks of any size."""
    entries, layout, chunk_bytes = draw(loads())
    block_bytes = draw(st.integers(1, 12)) * 16
    sizes = {entry.shard: max(e.end for e in entries if e.shard == entry.shard) for entry in entries}
    digests = {
        shard: BlockDigests(size_bytes, 100, block_bytes, b"")
        for shard, size_bytes in sizes.items()
        if draw(st.booleans())
    }
    return entries, layout, chunk_bytes, digests


@given(loads_in_blocks())
def test_reads_of_blocks_are_whole_and_bring_every_wanted_byte_once(load):
    """With digests a shard's reads are runs of whole blocks, each block at most once, and nothing else changes."""
    entries, layout, chunk_bytes, digests = load
    versions = [BlobVersion(shard, 1 << 20, None) for shard in sorted({entry.shard for entry in entries})]
    plan = plan_load(entries, versions, layout, chunk_bytes=chunk_bytes, digests=digests)
    plain = plan_of(entries, layout, chunk_bytes)
    assert (plan.extents, plan.arena_bytes, plan.versions) == (plain.extents, plain.arena_bytes, plain.versions)
    assert plan.digests.items() <= digests.items()

    def landings(chunks):
        """Arena byte by byte of the blob, for every wanted byte; a cast element by its first."""
        return sorted(
            (chunk.shard, chunk.start + s.slot_start + i, s.arena_start + i * s.arena_nbytes // s.slot_nbytes)
            for chunk in chunks
            for s in chunk.segments
            for i in range(0, s.slot_nbytes, BITS[s.source_dtype] // 8 if s.source_dtype != s.stored_dtype else 1)
        )

    assert landings(plan.chunks) == landings(plain.chunks)
    seen = set()
    for chunk in plan.chunks:
        assert chunk.segments
        assert all(0 <= s.slot_start <= s.slot_start + s.slot_nbytes <= chunk.nbytes for s in chunk.segments)
        if (blocks := plan.digests.get(chunk.shard)) is None:
            continue
        numbers = range(blocks.block_at(chunk.start), blocks.block_at(chunk.end - 1) + 1)
        assert (blocks.bounds(numbers[0])[0], blocks.bounds(numbers[-1])[1]) == (chunk.start, chunk.end)
        assert len(numbers) == 1 or chunk.nbytes <= chunk_bytes
        assert not seen & {(chunk.shard, number) for number in numbers}
        seen |= {(chunk.shard, number) for number in numbers}


@given(loads_in_blocks())
def test_only_a_cast_across_blocks_costs_a_shard_its_verification(load):
    """A shard is read without its digests exactly where an element to cast may lie across a border."""
    entries, layout, chunk_bytes, digests = load
    by_name = {entry.name: entry for entry in entries}
    plan = plan_load(entries, (), layout, chunk_bytes=chunk_bytes, digests=digests)
    wanted = {by_name[tensor.source_name].shard for tensor in layout.tensors}
    across = {
        entry.shard
        for tensor in layout.tensors
        if (entry := by_name[tensor.source_name]).dtype != tensor.dtype
        and (entry.start - 100) % (BITS[entry.dtype] // 8)
    }
    assert plan.digests.keys() == digests.keys() & wanted - across


def test_reads_are_interleaved_over_shards():
    """Neighbouring reads go to different blobs, so that each blob's request limit is shared."""
    entries = make_entries([("a", "U8", 30), ("b", "U8", 30), ("c", "U8", 10)])
    layout = Layout(origin=ORIGIN, tensors=tuple(TensorLayout(e.name, e.name, e.dtype) for e in entries))
    assert [chunk.shard for chunk in plan_of(entries, layout, 10).chunks] == list("abcabab")


def test_small_tensors_share_a_read():
    """Reads cross tensor borders where the bytes are adjacent."""
    entries = make_entries([("a", "U8", 3), ("a", "F32", 2), ("a", "U8", 4)])
    layout = Layout(origin=ORIGIN, tensors=tuple(TensorLayout(e.name, e.name, e.dtype) for e in entries))
    plan = plan_of(entries, layout, 1 << 20)
    assert [(chunk.start, chunk.end, len(chunk.segments)) for chunk in plan.chunks] == [(100, 115, 3)]


@pytest.mark.parametrize(
    ("tensors", "groups", "message"),
    [
        ([("nowhere", "x", "U8")], (), "no shard holds"),
        ([("t0", "x", "U8"), ("t1", "x", "F32")], (), "two tensors under one name"),
        ([("t0", "x", "F32")], (), "cannot be cast from U8 to F32"),
        ([("t0", "x", "U8"), ("t1", "y", "F32")], (Group("g", ("x", "y")),), "cannot be fused"),
    ],
)
def test_impossible_layouts_are_refused(tensors, groups, message):
    """A layout that the checkpoint cannot fill is an error, not an arena with holes."""
    entries = make_entries([("a", "U8", 4), ("a", "F32", 4)])
    layout = Layout(origin=ORIGIN, tensors=tuple(TensorLayout(*tensor) for tensor in tensors), groups=groups)
    with pytest.raises(CheckpointError, match=message):
        plan_of(entries, layout, 100)


def test_only_the_shards_that_are_read_are_pinned():
    """The plan carries the versions of its own shards alone."""
    entries = make_entries([("a", "U8", 4), ("b", "U8", 4)])
    layout = Layout(origin=ORIGIN, tensors=(TensorLayout("t1", "t1", "U8"),))
    assert [version.name for version in plan_of(entries, layout, 100).versions] == ["b"]
