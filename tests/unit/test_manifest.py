"""streaming.manifest and streaming.digests: what is said of a file, and what is not believed."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.blocks import CRC_BYTES, BlockDigests
from streaming.digests import crc64nvme, mismatches, summarize
from streaming.errors import CheckpointError
from streaming.manifest import (
    FileDigests,
    Manifest,
    bare_etag,
    block_bytes_for,
    check_version,
    encoded,
    parse_manifest,
)
from streaming.messages import BlobVersion
from streaming.options import MIB
from tests.unit.checkpoints import shard_bytes


def bitwise_crc(data: bytes) -> int:
    """CRC-64/NVME bit by bit, from its parameters: reflected polynomial, all ones before and after."""
    crc = 0xFFFFFFFFFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x9A6C9329AC4BC9B5 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFFFFFFFFFF


def test_the_crc_is_the_published_one():
    """The check value of CRC-64/NVME is that of its catalogue."""
    assert crc64nvme(b"123456789") == bitwise_crc(b"123456789") == 0xAE8B14860A799888


@given(st.binary(max_size=2000), st.integers(0, 20))
def test_the_crc_is_that_of_its_definition(data, start):
    """Any bytes, also from the middle of a buffer, have the digest that the polynomial gives."""
    assert crc64nvme(memoryview(data)[start:]) == bitwise_crc(data[start:])


@st.composite
def blobs(draw):
    """A blob's bytes, and how it is cut."""
    content = draw(st.binary(max_size=600))
    return content, draw(st.integers(0, len(content))), draw(st.integers(1, 12)) * 16


def blocks_of(content: bytes, data_start: int, block_bytes: int) -> BlockDigests:
    """The digests of a blob, by the oracle."""
    cut = BlockDigests(len(content), data_start, block_bytes, b"")
    bounds = [cut.bounds(number) for number in range(cut.count)]
    crcs = b"".join(bitwise_crc(content[start:end]).to_bytes(CRC_BYTES, "big") for start, end in bounds)
    return BlockDigests(len(content), data_start, block_bytes, crcs)


@given(blobs())
def test_blocks_partition_a_blob(blob):
    """Blocks follow one another from byte 0 to the end, the first is the header, and each byte knows its own."""
    content, data_start, block_bytes = blob
    blocks = blocks_of(*blob)
    bounds = [blocks.bounds(number) for number in range(blocks.count)]
    edges = [0, *([data_start] if data_start else []), *range(data_start + block_bytes, len(content), block_bytes)]
    assert [start for start, _ in bounds] == (sorted(set(edges) - {len(content)}) if content else [])
    assert [end for _, end in bounds] == [*[start for start, _ in bounds][1:], *([len(content)] if content else [])]
    assert all(
        blocks.block_at(offset) == number for number, (start, end) in enumerate(bounds) for offset in range(start, end)
    )


@given(blobs(), st.data())
def test_a_flipped_bit_is_found_in_its_block(blob, data):
    """Of whole blocks exactly the one that was changed differs, and it is told with both digests."""
    content, _, _ = blob
    blocks = blocks_of(*blob)
    assert mismatches(memoryview(content), 0, blocks) == []
    if not content:
        return
    offset = data.draw(st.integers(0, len(content) - 1))
    damaged = bytearray(content)
    damaged[offset] ^= 1 << data.draw(st.integers(0, 7))
    first = data.draw(st.integers(0, blocks.block_at(offset)))
    from_byte, _ = blocks.bounds(first)
    start, end = blocks.bounds(blocks.block_at(offset))
    assert mismatches(memoryview(damaged)[from_byte:], from_byte, blocks) == [
        (start, end, bitwise_crc(content[start:end]), bitwise_crc(damaged[start:end]))
    ]


@given(st.binary(max_size=400), st.integers(1, 8))
def test_one_pass_over_a_file_gives_every_digest(tmp_path_factory, content, sixteenths):
    """MD5, SHA-256 and block digests are those of the file's bytes; a shard's first block is its header."""
    folder = tmp_path_factory.mktemp("files")
    shard = shard_bytes({"a": ("U8", (len(content),), content)})
    for name, whole, data_start in (("x.bin", content, 0), ("x.safetensors", shard, len(shard) - len(content))):
        (folder / name).write_bytes(whole)
        md5, digests = summarize(folder / name, 16 * sixteenths)
        assert md5 == hashlib.md5(whole).digest()
        assert digests.sha256 == hashlib.sha256(whole).hexdigest()
        assert digests.header_sha256 == (hashlib.sha256(whole[:data_start]).hexdigest() if data_start else "")
        assert digests.blocks(16 * sixteenths) == blocks_of(whole, data_start, 16 * sixteenths)


def file_digests(size_bytes: int = 100, *, data_start: int = 10, block_bytes: int = 32, **changes) -> FileDigests:
    count = BlockDigests(size_bytes, data_start, block_bytes, b"").count
    digests = FileDigests(
        size_bytes=size_bytes,
        etag="0x1",
        sha256="0" * 64,
        data_start=data_start,
        header_sha256="f" * 64 if data_start else "",
        crc64nvme=bytes(range(count * CRC_BYTES)),
    )
    return msgspec.structs.replace(digests, **changes)


MANIFEST = Manifest(block_bytes=32, files={"b.safetensors": file_digests(), "a.json": file_digests(5, data_start=0)})


def test_a_manifest_reads_back():
    """What was written is what is read, and the same files give the same bytes."""
    assert parse_manifest(encoded(MANIFEST)) == MANIFEST
    again = Manifest(block_bytes=32, files=dict(reversed(MANIFEST.files.items())))
    assert encoded(again) == encoded(MANIFEST)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a manifest"),
        (b"\xff\xfe", "not a manifest"),
        (b"[]", "not a manifest"),
        (b'{"format": 1}', "not a manifest"),
        (b'{"format": 2, "blocks": []}', "format 2 is not known"),
        (encoded(Manifest(block_bytes=0, files={})), "blocks of 0 bytes"),
        (encoded(Manifest(block_bytes=24, files={})), "blocks of 24 bytes"),
        (encoded(Manifest(block_bytes=512 * MIB, files={})), "blocks of 536870912 bytes"),
        (encoded(Manifest(block_bytes=32, files={"x.y": file_digests(crc64nvme=b"1234567")})), "x.y: 7 bytes of block"),
        (encoded(Manifest(block_bytes=32, files={"x.y": file_digests(sha256="z" * 64)})), "x.y: .* is no SHA-256"),
        (encoded(Manifest(block_bytes=32, files={"x.y": file_digests(header_sha256="")})), "x.y: '' is no SHA-256"),
        (encoded(Manifest(block_bytes=32, files={"x.y": file_digests(data_start=101)})), "x.y: data from byte 101"),
        (encoded(Manifest(block_bytes=32, files={"x.y": file_digests(size_bytes=-1, data_start=0)})), "x.y: data from"),
        (encoded(MANIFEST).replace(b'"etag"', b'"tag"'), "not a manifest"),
    ],
)
def test_what_is_no_manifest_is_named(content, message):
    """A file that is not ours, of another version or contradictory is refused with its name, on one line."""
    with pytest.raises(CheckpointError, match=rf"^coldstream.json: {message}") as raised:
        parse_manifest(content)
    assert "\n" not in str(raised.value)


@given(st.binary(max_size=300) | st.integers(0, 400).map(lambda cut: encoded(MANIFEST)[:cut]))
def test_no_bytes_break_the_parser(content):
    """Whatever lies there gives a manifest or a CheckpointError."""
    try:
        found = parse_manifest(content)
    except CheckpointError:
        return
    assert found == MANIFEST


def test_a_shard_of_another_size_or_without_digests_does_not_fit():
    """Sizes must agree, every shard must be named, and an ETag alone decides nothing."""
    check_version(MANIFEST, BlobVersion("b.safetensors", 100, '"0x2"'))
    with pytest.raises(CheckpointError, match=r"b.safetensors: has 101 bytes, coldstream.json says 100"):
        check_version(MANIFEST, BlobVersion("b.safetensors", 101, '"0x1"'))
    with pytest.raises(CheckpointError, match=r"c.safetensors: not in coldstream.json"):
        check_version(MANIFEST, BlobVersion("c.safetensors", 100, None))


@pytest.mark.parametrize(("checkpoint_mib", "block_mib"), [(0, 1), (64, 1), (127, 1), (270, 4), (512, 8), (140_000, 8)])
def test_small_checkpoints_have_small_blocks(checkpoint_mib, block_mib):
    """Blocks are 8 MiB, or less where 64 of those would not be had."""
    assert block_bytes_for(checkpoint_mib * MIB) == block_mib * MIB


@pytest.mark.parametrize("etag", ['"0x8D"', "0x8D", 'W/"0x8D"'])
def test_etags_are_compared_without_their_quotes(etag):
    """Listings and answers write one ETag in several ways."""
    assert bare_etag(etag) == "0x8D"
