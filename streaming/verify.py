"""A container compared with digests, byte by byte: `coldstream verify`.

Takes a source and a manifest (its own, or one made of a local folder), streams every block through the lanes, keeps none, and
gives what differs. Knows no tensor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from streaming.blocks import BlockDigests
from streaming.digests import Mismatch, mismatches, summarize
from streaming.errors import BlobNotFound, CheckpointError
from streaming.manifest import MANIFEST_NAME, Manifest, block_bytes_for, parse_manifest
from streaming.messages import BlobVersion
from streaming.source import Source


class FileVerdict(NamedTuple):
    """One file, and how it differs: not at all where `flaws` is empty."""

    name: str
    size_bytes: int
    flaws: tuple[str, ...]


def stored_manifest(source: Source) -> Manifest:
    """The manifest beside the checkpoint.

    Raises:
        CheckpointError: There is none, or it is none.
    """
    try:
        return parse_manifest(bytes(source.read(MANIFEST_NAME)))
    except BlobNotFound as error:
        raise CheckpointError(
            f"{source.location}: no {MANIFEST_NAME}: push again, or compare with a folder (--against)"
        ) from error


def folder_manifest(folder: Path) -> Manifest:
    """What a push of this folder would say.

    Raises:
        CheckpointError: It cannot be pushed, or not be read.
    """
    from streaming.upload_origin import checkpoint_files

    paths = checkpoint_files(folder)
    block_bytes = block_bytes_for(sum(path.stat().st_size for path in paths))
    try:
        files = {path.name: summarize(path, block_bytes).digests for path in paths}
    except OSError as error:
        raise CheckpointError(f"{error.filename}: cannot be read: {error.strerror}") from error
    return Manifest(block_bytes=block_bytes, files=files)


def verify(source: Source, manifest: Manifest, lanes: int) -> list[FileVerdict]:
    """Read every file of the manifest and compare it; shards that it does not name differ, too.

    Raises:
        SourceError: The source cannot be read.
    """
    with ThreadPoolExecutor(lanes) as pool:
        found = dict(zip(manifest.files, pool.map(lambda name: _version(source, name), manifest.files), strict=True))
        listed = source.list() or {}
    flaws: dict[str, list[str]] = {name: [] for name in manifest.files}
    todo: list[tuple[BlobVersion, BlockDigests]] = []
    for name, file in manifest.files.items():
        version = found[name]
        if version is None:
            flaws[name].append("not there")
        elif version.size_bytes != file.size_bytes:
            flaws[name].append(f"{version.size_bytes} bytes instead of {file.size_bytes}")
        else:
            todo.append((version, file.blocks(manifest.block_bytes)))
    asyncio.run(_compare(source, todo, lanes, flaws))
    known = [FileVerdict(name, file.size_bytes, tuple(flaws[name])) for name, file in manifest.files.items()]
    strange = sorted(name for name in listed.keys() - manifest.files.keys() if name.endswith(".safetensors"))
    return known + [FileVerdict(name, listed[name], ("not expected there",)) for name in strange]


def _version(source: Source, name: str) -> BlobVersion | None:
    try:
        return source.read_prefix(name, 1).version
    except BlobNotFound:
        return None


async def _compare(
    source: Source, files: list[tuple[BlobVersion, BlockDigests]], lanes: int, flaws: dict[str, list[str]]
) -> None:
    """Fill `flaws` with the blocks that differ, in the order of the file."""
    reads = ((version, blocks, number) for version, blocks in files for number in range(blocks.count))
    wrong: list[tuple[str, int, str]] = []

    async def lane(todo: Iterator[tuple[BlobVersion, BlockDigests, int]]) -> None:
        for version, blocks, number in todo:
            found = await _read_block(source, version, blocks, number) and await _read_block(
                source, version, blocks, number
            )
            wrong.extend((version.name, mismatch.start, str(mismatch)) for mismatch in found)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(lanes):
                group.create_task(lane(reads))
    except BaseExceptionGroup as group_error:
        raise group_error.exceptions[0] from None
    for name, _, text in sorted(wrong):
        flaws[name].append(text)


async def _read_block(source: Source, version: BlobVersion, blocks: BlockDigests, number: int) -> list[Mismatch]:
    """What is wrong with one block; it may have been damaged on its way."""
    start, end = blocks.bounds(number)
    data = await source.read_range(version, start, end)
    return await asyncio.to_thread(mismatches, memoryview(data), start, blocks)
