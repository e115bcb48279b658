"""What a checkpoint is, in two rounds of parallel GETs: metadata first, then the shards' headers.

Takes a source, gives metadata files and validated tensor entries; downloads no weight (but for what the
speculative header read catches). Where there is a manifest, nothing of what it names is believed before its digest agrees.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from streaming import checkpoint
from streaming.blocks import BlockDigests
from streaming.errors import BlobNotFound, CheckpointError
from streaming.manifest import MANIFEST_NAME, FileDigests, Manifest, OnFlaw, check_version, parse_manifest, refuse
from streaming.messages import BlobVersion, Entry
from streaming.source import Prefix
from streaming.uri import Location

if TYPE_CHECKING:
    from streaming.pipeline import Bytes

METADATA_NAMES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
# Only fetched where there is no tokenizer.json: what transformers can make one of.
TOKENIZER_SOURCE_NAMES = (
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "added_tokens.json",
)

# A 5 GB shard has 10 KB of header for a dense model, 200 KB for one with an expert per tensor.
_SPECULATIVE_BYTES = 256 << 10
_PARALLEL = 16


# Sizes by name, or None where the source cannot be listed.
Listing = Future[dict[str, int] | None]


class Readable(Protocol):
    """What describing needs of a source."""

    @property
    def location(self) -> Location:
        """Where it is."""

    def list(self) -> dict[str, int] | None:
        """Sizes in bytes by name of what is there; None where that cannot be asked."""

    def read(self, name: str) -> Bytes:
        """A whole small blob."""

    def read_prefix(self, name: str, nbytes: int) -> Prefix:
        """The first bytes of a blob, and its version."""

    async def read_range(self, version: BlobVersion, start: int, end: int) -> Bytes:
        """Bytes `[start, end)` of this version."""


@dataclass(frozen=True)
class Description:
    """A checkpoint's metadata files by base name, its tensors, its shards' versions, and what its manifest says of shards.

    `digests` lacks a shard only where a flaw was let pass; without a manifest there are none.
    """

    files: dict[str, bytes]
    entries: tuple[Entry, ...]
    versions: tuple[BlobVersion, ...]
    digests: dict[str, BlockDigests] = field(default_factory=dict)
    has_manifest: bool = False


def describe(source: Readable, on_flaw: OnFlaw = refuse) -> Description:
    """Read and validate everything but the weights.

    Args:
        source: Where the checkpoint lies.
        on_flaw: Told of what differs from the manifest; when it returns, what was found is taken as it is.

    Raises:
        SourceError: The source cannot be read.
        CheckpointError: There is no safetensors checkpoint, or it contradicts itself.
    """
    with ThreadPoolExecutor(_PARALLEL) as pool:
        listing = pool.submit(source.list)
        single = pool.submit(_prefix_or_none, source, checkpoint.SINGLE_NAME)
        names = (MANIFEST_NAME, *METADATA_NAMES, checkpoint.INDEX_NAME)
        files = _existing(names, pool.map(lambda name: _read_or_none(source, name), names))
        integrity = _Integrity(source, files.pop(MANIFEST_NAME, None), on_flaw)
        files = integrity.of_files(files)
        index = files.pop(checkpoint.INDEX_NAME, None)
        weight_map = None if index is None else checkpoint.parse_index(index)
        if not files and weight_map is None and single.result() is None:
            _check_something_is_there(source, listing)
        shards = _shard_names(source, weight_map, single.result(), listing)
        extra = () if "tokenizer.json" in files else TOKENIZER_SOURCE_NAMES
        extras = pool.map(lambda name: _read_or_none(source, name), extra)
        prefixes = {checkpoint.SINGLE_NAME: single.result()}
        headers = list(pool.map(lambda shard: _header(source, shard, prefixes.get(shard), integrity), shards))
        files |= integrity.of_files(_existing(extra, extras))
    entries = tuple(entry for shard_entries, _ in headers for entry in shard_entries)
    chosen = checkpoint.unique(entries) if weight_map is None else checkpoint.select(weight_map, entries)
    versions = tuple(version for _, version in headers)
    return Description(files, chosen, versions, integrity.digests, integrity.manifest is not None)


class _Integrity:
    """What the manifest says of the files that are read here; `digests` are of the shards whose headers agreed."""

    def __init__(self, source: Readable, content: bytes | None, on_flaw: OnFlaw):
        self.digests: dict[str, BlockDigests] = {}
        self.manifest: Manifest | None = None
        self._source = source
        self._on_flaw = on_flaw
        try:
            self.manifest = None if content is None else parse_manifest(content)
        except CheckpointError as error:
            on_flaw(CheckpointError(f"{source.location}/{error}"))

    def of_files(self, files: dict[str, bytes]) -> dict[str, bytes]:
        """The files, each as the manifest has it; one that differs is read once more."""
        return {name: self._of_file(name, content) for name, content in files.items()}

    def of_header(self, version: BlobVersion, head: bytes) -> bytes:
        """A shard's first bytes, its header whole and as the manifest has it."""
        if self.manifest is None:
            return head
        try:
            check_version(self.manifest, version)
            file = self.manifest.files[version.name]
            head = self._checked(version, head, file)
        except CheckpointError as error:
            self._on_flaw(CheckpointError(f"{self._source.location}/{error}"))
        else:
            self.digests[version.name] = file.blocks(self.manifest.block_bytes)
        return head

    def _checked(self, version: BlobVersion, head: bytes, file: FileDigests) -> bytes:
        name, end = version.name, file.data_start
        if len(head) < end:
            head += self._read(version, len(head), end)
        if end and _sha256(head[:end]) != file.header_sha256:
            head = self._read(version, 0, end)
            if (digest := _sha256(head)) != file.header_sha256:
                raise CheckpointError(
                    f"{name} [0, {end}): its SHA-256 is {digest}, the manifest says {file.header_sha256}: "
                    "the header is damaged, or newer than the manifest: push again"
                )
        if (found := checkpoint.header_end(name, head, version.size_bytes)) != end:
            raise CheckpointError(f"{name}: its data begins at byte {found}, the manifest says {end}: push again")
        return head

    def _read(self, version: BlobVersion, start: int, end: int) -> bytes:
        return bytes(asyncio.run(self._source.read_range(version, start, end)))

    def _of_file(self, name: str, content: bytes) -> bytes:
        expected = self.manifest.files.get(name) if self.manifest else None
        if expected is None or _sha256(content) == expected.sha256:
            return content
        content = bytes(self._source.read(name))
        if (found := _sha256(content)) != expected.sha256:
            self._on_flaw(
                CheckpointError(
                    f"{self._source.location}/{name} [0, {len(content)}): its SHA-256 is {found}, the manifest says "
                    f"{expected.sha256}: it is damaged or was changed after the manifest: push again"
                )
            )
        return content


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _shard_names(
    source: Readable, weight_map: dict[str, str] | None, single: Prefix | None, listing: Listing
) -> list[str]:
    """The index decides; without one a single file, or every safetensors file there is.

    The listing is looked at last: a credential that may not list can still load most checkpoints.
    """
    if weight_map is not None:
        return sorted(set(weight_map.values()))
    if single is not None:
        return [checkpoint.SINGLE_NAME]
    found = sorted(name for name in listing.result() or () if name.endswith(".safetensors"))
    if found:
        return found
    raise CheckpointError(
        f"{source.location}: no {checkpoint.INDEX_NAME}, no {checkpoint.SINGLE_NAME} and no other .safetensors file: "
        "only safetensors checkpoints can be streamed"
    )


def _check_something_is_there(source: Readable, listing: Listing) -> None:
    if not listing.result():
        raise BlobNotFound(f"{source.location}: nothing is there: check account, container and prefix")


def _header(
    source: Readable, shard: str, prefix: Prefix | None, integrity: _Integrity
) -> tuple[tuple[Entry, ...], BlobVersion]:
    prefix = prefix or _shard_prefix(source, shard)
    version = prefix.version
    head = integrity.of_header(version, bytes(prefix.data))
    end = checkpoint.header_end(shard, head, version.size_bytes)
    if end > len(head):
        head += bytes(asyncio.run(source.read_range(version, len(head), end)))
    return checkpoint.parse_header(shard, head[checkpoint.LENGTH_BYTES : end], version.size_bytes), version


def _shard_prefix(source: Readable, shard: str) -> Prefix:
    try:
        return source.read_prefix(shard, _SPECULATIVE_BYTES)
    except BlobNotFound as error:
        raise CheckpointError(f"{checkpoint.INDEX_NAME} names {shard}, which is not at {source.location}") from error


def _prefix_or_none(source: Readable, name: str) -> Prefix | None:
    try:
        return source.read_prefix(name, _SPECULATIVE_BYTES)
    except BlobNotFound:
        return None


def _read_or_none(source: Readable, name: str) -> bytes | None:
    try:
        return bytes(source.read(name))
    except BlobNotFound:
        return None


def _existing(names: Iterable[str], contents: Iterable[bytes | None]) -> dict[str, bytes]:
    return {name: content for name, content in zip(names, contents, strict=True) if content is not None}
