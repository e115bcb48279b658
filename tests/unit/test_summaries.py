"""Every digest of a file, of bytes that pass by once."""

from __future__ import annotations

import hashlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.digests import crc64nvme, summarize, summarize_pieces
from streaming.errors import CheckpointError
from tests.unit.checkpoints import shard_bytes

SHARD = shard_bytes({"a": ("U8", (100,), bytes(range(100)))})


def cut(content: bytes, cuts: list[int]) -> list[bytes]:
    """The content in pieces, empty ones among them."""
    bounds = [0, *sorted(cuts), len(content)]
    return [content[start:end] for start, end in itertools.pairwise(bounds)]


@given(
    data=st.data(),
    name=st.sampled_from(["model.safetensors", "tokenizer.json"]),
    block_bytes=st.sampled_from([16, 48, 1024]),
)
def test_digests_do_not_depend_on_how_the_bytes_came(data, name, block_bytes):
    """Whatever the pieces, and also of what only looks like a shard: MD5, SHA-256s and every block's CRC are those of the bytes."""
    content = data.draw(st.one_of(st.just(SHARD), st.binary(max_size=300)))
    cuts = data.draw(st.lists(st.integers(0, len(content)), max_size=12))
    md5, digests = summarize_pieces(name, len(content), cut(content, cuts), block_bytes)
    assert md5 == hashlib.md5(content).digest()
    assert digests.sha256 == hashlib.sha256(content).hexdigest()
    if content == SHARD:
        header_bytes = 8 + int.from_bytes(content[:8], "little")
        assert digests.data_start == (header_bytes if name == "model.safetensors" else 0)
    header = content[: digests.data_start]
    assert digests.header_sha256 == (hashlib.sha256(header).hexdigest() if header else "")
    blocks = digests.blocks(block_bytes)
    bounds = [blocks.bounds(number) for number in range(blocks.count)]
    assert len(digests.crc64nvme) == 8 * blocks.count
    assert [blocks.crc(number) for number in range(blocks.count)] == [crc64nvme(content[a:b]) for a, b in bounds]


@pytest.mark.parametrize("size_bytes", [0, 7, len(SHARD) - 1, len(SHARD) + 1])
def test_more_or_fewer_bytes_than_announced_are_refused(size_bytes):
    """A file that changes while it is read gives no digests."""
    with pytest.raises(CheckpointError, match=f"model.safetensors: .*bytes came instead of {size_bytes}"):
        summarize_pieces("model.safetensors", size_bytes, cut(SHARD, [3, 50]), 16)


def test_a_file_is_summarized_as_its_bytes_are(tmp_path):
    """From a disk, in pieces of its own."""
    content = SHARD + bytes(5 << 20)
    (tmp_path / "tokenizer.model").write_bytes(content)
    assert summarize(tmp_path / "tokenizer.model", 1 << 20) == summarize_pieces(
        "tokenizer.model", len(content), [content], 1 << 20
    )
