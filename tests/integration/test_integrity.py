"""Bytes that are not those of the manifest never reach the arena, wherever they were changed."""

from __future__ import annotations

import os
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from azure.storage.blob import ContainerClient

from app.cli import run
from app.settings import parse
from streaming.digests import crc64nvme
from streaming.manifest import encoded, parse_manifest
from streaming.messages import LandedChunks, Layout, TensorLayout
from streaming.options import PipelineOptions, SourceOptions
from streaming.upload import push
from tests.checkpoints import SMALL, random_shards, raw, write_manifest
from tests.loader import ORIGIN, Load, load
from tests.unit.checkpoints import write_checkpoint
from tools.blob_server import BlobServer

SHARD = "model-00002.safetensors"
ONE_LANE = PipelineOptions(lanes=1, chunk_bytes=1 << 20)


@pytest.fixture
def pushed(folder: Path, azurite, azurite_source: SourceOptions) -> Iterator[ContainerClient]:
    """A container with the random checkpoint of `folder` and its manifest."""
    random_shards(folder, megabytes=7)
    name = f"integrity-{uuid.uuid4().hex}"
    push(folder, f"az://{name}", azurite_source, quiet=True)
    with ContainerClient.from_connection_string(azurite.connection_string, name) as client:
        yield client


def uri_of(container: ContainerClient) -> str:
    return f"az://{container.container_name}"


def change(container: ContainerClient, name: str, edit: Callable[[bytearray], object]) -> bytes:
    """Edit a blob at rest; gives what it holds now."""
    content = bytearray(container.download_blob(name).readall())
    edit(content)
    container.upload_blob(name, bytes(content), overwrite=True)
    return bytes(content)


def flip(offset: int) -> Callable[[bytearray], object]:
    """One bit of the byte at `offset`."""
    return lambda content: content.__setitem__(offset, content[offset] ^ 1)


def flip_in_place(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def check_landed(result: Load, expected) -> None:
    assert result.error is None
    assert {name: result.tensor(name) for name in expected} == {name: raw(t) for name, t in expected.items()}


def test_what_was_pushed_is_verified_byte_by_byte(folder, pushed, azurite_source):
    """Every byte that is fetched for the arena is compared, and it lands as safetensors loads it."""
    result = load(uri_of(pushed), source=azurite_source, pipeline=SMALL)
    check_landed(result, random_shards(folder, megabytes=7))
    assert result.described.has_manifest
    assert len(result.plan.chunks) > 3
    assert result.report.counters.verified_bytes == result.plan.fetch_bytes > 6_000_000
    assert (result.report.counters.unverified_bytes, result.report.counters.mismatches) == (0, 0)


def test_a_bit_flipped_at_rest_never_reaches_the_arena(pushed, azurite_source):
    """The load ends with exit 4, the blob, the range and both digests; the block is nowhere in the arena."""
    manifest = parse_manifest(pushed.download_blob("coldstream.json").readall())
    blocks = manifest.blocks_of(SHARD)
    start, end = blocks.bounds(2)
    damaged = change(pushed, SHARD, flip(start + 1000))[start:end]

    result = load(uri_of(pushed), source=azurite_source, pipeline=SMALL)

    assert (result.report, result.error.kind, result.error.exit_code) == (None, "CheckpointError", 4)
    assert f"{uri_of(pushed)}/{SHARD} [{start}, {end})" in result.error.message
    assert f"{crc64nvme(damaged):016x} instead of {blocks.crc(2):016x}" in result.error.message
    (chunk,) = [chunk for chunk in result.plan.chunks if (chunk.shard, chunk.start) == (SHARD, start)]
    assert chunk.chunk_id not in result.landed_chunk_ids
    for segment in chunk.segments:
        assert os.pread(result.fd, segment.arena_nbytes, segment.arena_start) == bytes(segment.arena_nbytes)


def test_a_damaged_header_is_refused_before_anything_is_planned(pushed, azurite_source):
    """A header that still parses, but is another one, is told by its digest."""

    def rename(content):
        at = content.index(b'"t7.1"')
        content[at : at + 6] = b'"t7.8"'

    change(pushed, SHARD, rename)
    result = load(uri_of(pushed), source=azurite_source)
    assert (result.plan, result.error.kind, result.error.exit_code) == (None, "CheckpointError", 4)
    assert re.search(rf"{SHARD} \[0, \d+\): its SHA-256 is \w{{64}}, .* \w{{64}}", result.error.message)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_a_changed_metadata_file_is_refused(pushed, azurite_source, name):
    """Small files are compared by their SHA-256, and named with both."""
    change(pushed, name, lambda content: content.extend(b" "))
    result = load(uri_of(pushed), source=azurite_source)
    assert (result.described, result.error.kind, result.error.exit_code) == (None, "CheckpointError", 4)
    assert re.search(rf"/{re.escape(name)} \[0, \d+\): its SHA-256 is \w{{64}}, .* \w{{64}}", result.error.message)


def test_another_shard_uploaded_after_the_manifest_is_told_so(folder, pushed, azurite_source):
    """A size that is not the manifest's is refused; the same bytes under a new ETag are as good as the old."""
    content = change(pushed, SHARD, lambda _: None)
    check_landed(load(uri_of(pushed), source=azurite_source), random_shards(folder, megabytes=7))
    change(pushed, SHARD, lambda shard: shard.extend(b"x"))
    result = load(uri_of(pushed), source=azurite_source)
    assert result.error.kind == "CheckpointError"
    assert f"{SHARD}: has {len(content) + 1} bytes, coldstream.json says {len(content)}" in result.error.message


def test_a_shard_that_the_manifest_does_not_name_is_refused(folder, pushed, azurite_source):
    """What was never described by a push does not land beside what was."""
    manifest = parse_manifest(pushed.download_blob("coldstream.json").readall())
    del manifest.files[SHARD]
    pushed.upload_blob("coldstream.json", encoded(manifest), overwrite=True)
    result = load(uri_of(pushed), source=azurite_source)
    assert (result.error.kind, result.error.exit_code) == ("CheckpointError", 4)
    assert f"{SHARD}: not in coldstream.json" in result.error.message


def test_a_manifest_that_is_none_is_refused(pushed, azurite_source):
    """A truncated manifest is an error that names it, not a load without verification."""
    change(pushed, "coldstream.json", lambda content: content.__delitem__(slice(100, None)))
    result = load(uri_of(pushed), source=azurite_source)
    assert (result.error.kind, result.error.exit_code) == ("CheckpointError", 4)
    assert f"{uri_of(pushed)}/coldstream.json: not a manifest" in result.error.message


def test_without_a_manifest_a_load_is_counted_as_unverified(folder, pushed, azurite_source):
    """What was uploaded by other means loads as ever, and is counted."""
    pushed.delete_blob("coldstream.json")
    result = load(uri_of(pushed), source=azurite_source, pipeline=SMALL)
    check_landed(result, random_shards(folder, megabytes=7))
    assert not result.described.has_manifest
    assert result.report.counters.unverified_bytes == result.plan.fetch_bytes
    assert result.report.counters.verified_bytes == 0


def test_mismatches_may_be_let_pass(folder):
    """Without `refuse_mismatches` damaged blocks, files and shards of other sizes are told, counted and used."""
    expected = {
        name: raw(tensor) for name, tensor in random_shards(folder).items()
    }  # its tensors are views of the files
    write_manifest(folder, 64 << 10)
    shard = folder / SHARD
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    (folder / "config.json").write_text('{"changed": 1}')
    other = folder / "model-00001.safetensors"
    header_bytes = int.from_bytes(other.read_bytes()[:8], "little")
    with_padding = other.read_bytes()
    other.write_bytes((header_bytes + 8).to_bytes(8, "little") + with_padding[8 : 8 + header_bytes] + b" " * 8
                      + with_padding[8 + header_bytes :])  # fmt: skip
    result = load(str(folder), pipeline=SMALL, refuse_mismatches=False)
    assert result.error is None
    assert result.described.files["config.json"] == b'{"changed": 1}'
    assert {fallback.what for fallback in result.fallbacks} == {"unverified-bytes"}
    reasons = "\n".join(fallback.reason for fallback in result.fallbacks)
    assert all(part in reasons for part in ("config.json [0,", f"{SHARD} [", "model-00001.safetensors: has"))
    assert sum(result.tensor(name) != data for name, data in expected.items()) == 1
    assert result.report.counters.mismatches == 2  # one block, twice
    assert result.report.counters.unverified_bytes == len(with_padding) - 8 - header_bytes
    assert result.report.counters.verified_bytes > len(content) // 2


def test_a_block_that_was_damaged_on_its_way_is_read_again(folder):
    """A mismatch that a second read does not confirm costs one request, not the load."""
    expected = random_shards(folder)
    write_manifest(folder, 64 << 10)
    shard = folder / SHARD
    times = shard.stat().st_atime_ns, shard.stat().st_mtime_ns
    reads = []

    def damage_first(request):
        if request.path.endswith(SHARD) and request.start > 0:
            reads.append((request.start, request.end))
            if len(reads) <= 2:  # damaged before the first answer, as it was before the second one
                flip_in_place(shard, reads[0][0])
                os.utime(shard, ns=times)  # the ETag stays

    with BlobServer(folder, hook=damage_first) as server:
        result = load(server.url, pipeline=ONE_LANE)
    check_landed(result, expected)
    asked = Counter(reads)
    assert asked.pop(reads[0]) == 2
    assert set(asked.values()) == {1}
    assert result.report.counters.mismatches == 1
    assert result.report.counters.verified_bytes == result.plan.fetch_bytes


def test_a_loader_that_goes_on_verifies_too(folder):
    """The digests are in the plan, so that the successor of a dead loader refuses what it would have refused."""
    random_shards(folder)
    write_manifest(folder, 64 << 10)
    first = load(
        str(folder),
        pipeline=PipelineOptions(lanes=1, chunk_bytes=64 << 10),
        on_message=lambda child, message: child.kill() if isinstance(message, LandedChunks) else None,
    )
    assert first.report is None
    left = [chunk for chunk in first.plan.chunks if chunk.chunk_id not in first.landed_chunk_ids]
    (folder / "coldstream.json").unlink()
    shard = folder / left[-1].shard
    times = (shard.stat().st_atime_ns, shard.stat().st_mtime_ns)
    content = bytearray(shard.read_bytes())
    content[left[-1].start] ^= 1
    with shard.open("r+b") as file:  # the same inode and size, and below the same date: the ETag stays
        file.write(content)
    os.utime(shard, ns=times)
    second = load(str(folder), pipeline=SMALL, resume=first)
    assert (second.error.kind, second.error.exit_code) == ("CheckpointError", 4)
    assert f"{left[-1].shard} [{left[-1].start}," in second.error.message


def test_a_cast_across_blocks_is_told_and_not_verified(folder):
    """A shard whose elements to cast may be cut by block borders lands whole, unverified, with the reason."""
    values = bytes(range(200)) * 2000
    write_checkpoint(
        folder,
        {
            "a.safetensors": {"odd": ("U8", (1,), b"x"), "cast": ("BF16", (200_000,), values)},
            "b.safetensors": {"even": ("BF16", (200_000,), values)},
        },
    )
    write_manifest(folder, 64 << 10)

    def layout(_):
        names = {"odd": "U8", "cast": "F32", "even": "F32"}
        return Layout(origin=ORIGIN, tensors=tuple(TensorLayout(name, name, dtype) for name, dtype in names.items()))

    result = load(str(folder), pipeline=SMALL, layout=layout)
    assert result.error is None
    assert result.tensor("cast") == result.tensor("even")
    assert [(found.what, found.reason.split()[0]) for found in result.fallbacks] == [
        ("unverified-shard", "a.safetensors")
    ]
    assert (result.report.counters.unverified_bytes, result.report.counters.verified_bytes) == (400_001, 400_000)


def verify(*words: str, environ: dict[str, str]) -> int:
    """Run `coldstream verify` here."""
    return run(parse(["verify", *words, "--log-level", "warning"], environ), environ)


def test_verify_says_of_every_file_whether_it_is_sound(pushed, azure_environment, capsys):
    """Exit 0 while all is well; then exit 4 with the range and both digests, the sizes, or what is missing."""
    uri = uri_of(pushed)
    assert verify(uri, environ=azure_environment) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert all(re.fullmatch(r"\S+  ok       \d+ bytes", line) for line in lines[:-1])
    assert lines[-1] == "5 files, 0 differ"

    manifest = parse_manifest(pushed.download_blob("coldstream.json").readall())
    start, end = manifest.blocks_of(SHARD).bounds(1)
    change(pushed, SHARD, flip(end - 1))
    change(pushed, "config.json", lambda content: content.extend(b"\n"))
    pushed.delete_blob("model-00001.safetensors")
    pushed.upload_blob("model-00009.safetensors", b"?")
    assert verify(uri, environ=azure_environment) == 4
    said = capsys.readouterr().out
    assert re.search(rf"{SHARD}  differs  \[{start}, {end}\): CRC-64/NVME \w{{16}} instead of \w{{16}}\n", said)
    assert "config.json  differs  3 bytes instead of 2\n" in said
    assert "model-00001.safetensors  differs  not there\n" in said
    assert "model-00009.safetensors  differs  not expected there\n" in said
    assert said.endswith("6 files, 4 differ\n")


def test_verify_compares_with_a_folder(folder, pushed, azure_environment, capsys):
    """The folder decides, with or without a manifest in the container."""
    pushed.delete_blob("coldstream.json")
    assert verify(uri_of(pushed), "--against", str(folder), environ=azure_environment) == 0
    shard = folder / SHARD
    content = bytearray(shard.read_bytes())
    content[5_000_000 if len(content) > 5_000_000 else -1] ^= 1
    shard.write_bytes(content)
    assert verify(uri_of(pushed), "--against", str(folder), environ=azure_environment) == 4
    assert re.search(rf"{SHARD}  differs  \[\d+, \d+\): CRC", capsys.readouterr().out)
