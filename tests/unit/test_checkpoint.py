"""streaming.checkpoint: what is accepted, and what is refused with the shard and the tensor named."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming import checkpoint
from streaming.dtypes import BITS
from streaming.errors import CheckpointError
from tests.unit.checkpoints import data_bytes, parse, shard_bytes, with_header

WHOLE_BYTE_DTYPES = sorted(name for name, bits in BITS.items() if bits % 8 == 0)


@given(
    st.lists(
        st.tuples(st.sampled_from(WHOLE_BYTE_DTYPES), st.lists(st.integers(0, 5), max_size=3).map(tuple)), max_size=6
    )
)
def test_entries_span_the_data_without_a_gap(kinds):
    """Every valid header yields its tensors with absolute ranges that follow one another to the end of the file."""
    tensors = {f"t{i}": (dtype, shape, bytes(data_bytes(dtype, shape))) for i, (dtype, shape) in enumerate(kinds)}
    content = shard_bytes(tensors)
    entries = parse("s", content)
    assert {entry.name: (entry.dtype, entry.shape) for entry in entries} == {
        name: (dtype, shape) for name, (dtype, shape, _) in tensors.items()
    }
    ends = [entry.end for entry in entries]
    assert [entry.start for entry in entries[1:]] == ends[:-1]
    assert not ends or ends[-1] == len(content)


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "too few"),
        (b"1234567", "too few"),
        (with_header({}, b"")[:9], "claims"),
        (b"\xff" * 8 + b"{}", "claims"),
        (with_header(b"not json", b""), "not a JSON object"),
        (with_header(b"[1]", b""), "not a JSON object"),
        (with_header({"a": 3}, b""), "'a'"),
        (with_header({"a": {"dtype": "F32", "shape": [2]}}, b"12345678"), "data_offsets"),
        (with_header({"a": entry(dtype="F33")}, bytes(8)), "unknown dtype 'F33'"),
        (with_header({"a": entry(shape=(3,))}, bytes(8)), "takes 12 bytes"),
        (with_header({"a": entry(shape=(-2,))}, bytes(8)), "negative"),
        (with_header({"a": entry(offsets=(8, 0))}, bytes(8)), "reversed"),
        (with_header({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)), "overlaps"),
        (with_header({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)), "gap"),
        (with_header({"a": entry(offsets=(4, 12))}, bytes(12)), "gap"),
        (with_header({"a": entry()}, bytes(7)), "truncated"),
        (with_header({"a": entry()}, bytes(9)), "no tensor owns"),
    ],
)
def test_malformed_shards_are_refused_by_name(content, message):
    """A shard that contradicts itself is refused with one line that names it and the flaw."""
    with pytest.raises(CheckpointError, match=message) as caught:
        parse("weights.safetensors", content)
    assert "weights.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_never_raise_anything_else(content):
    """Whatever a blob holds, the answer is entries or a CheckpointError."""
    with contextlib.suppress(CheckpointError):
        assert all(found.end <= len(content) for found in parse("s", content))


def test_out_of_order_headers_are_accepted_by_address():
    """The header's order means nothing, the offsets do."""
    content = with_header({"b": entry(offsets=(8, 16)), "a": entry()}, bytes(16))
    assert [parsed.name for parsed in parse("s", content)] == ["a", "b"]


def test_metadata_is_not_a_tensor():
    """`__metadata__` carries no bytes."""
    assert parse("s", with_header({"__metadata__": {"format": "pt"}, "a": entry()}, bytes(8)))[0].name == "a"


@pytest.mark.parametrize("data", [b"", b"{}", b'{"weight_map": {"a": 1}}', b'{"weight_map": []}', b"[]"])
def test_an_index_without_a_weight_map_is_refused(data):
    """An index must map tensor names to shard names."""
    with pytest.raises(CheckpointError, match="weight_map"):
        checkpoint.parse_index(data)


def test_the_index_decides_which_copy_counts():
    """Of two shards that hold one name, the index's is the tensor."""
    shards = {name: parse(name, shard_bytes({"a": ("U8", (1,), b"x")})) for name in ("one", "two")}
    chosen = checkpoint.select({"a": "two"}, [*shards["one"], *shards["two"]])
    assert [found.shard for found in chosen] == ["two"]


def test_an_index_that_names_what_is_not_there_is_refused():
    """A tensor that its shard does not hold is an error with both names."""
    with pytest.raises(CheckpointError, match=r"'b' in one"):
        checkpoint.select({"b": "one"}, parse("one", shard_bytes({"a": ("U8", (1,), b"x")})))


def test_two_shards_with_one_name_and_no_index_are_refused():
    """Nobody says which copy counts."""
    entries = [found for name in ("one", "two") for found in parse(name, shard_bytes({"a": ("U8", (1,), b"x")}))]
    with pytest.raises(CheckpointError, match="no index decides"):
        checkpoint.unique(entries)


def test_index_round_trip():
    """A real index is read as its weight map."""
    assert checkpoint.parse_index(json.dumps({"metadata": {}, "weight_map": {"a": "s"}}).encode()) == {"a": "s"}
