"""The manifest beside a checkpoint, `coldstream.json`: what every file was when it was pushed, digest by digest.

Takes and gives bytes of JSON; computes no digest and reads nothing itself. A file is cut into blocks: of a safetensors file
the first is the header, `[0, data_start)`, and the others lie behind one another from there, so that no element of an
aligned tensor is cut and no header is fetched with weights; every other file is cut from byte 0.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from streaming.blocks import CRC_BYTES, BlockDigests
from streaming.errors import CheckpointError
from streaming.messages import BlobVersion
from streaming.options import MIB

MANIFEST_NAME = "coldstream.json"
# The same of a push that is under way, or was cut off: which files are whole already.
PARTIAL_NAME = "coldstream.partial.json"
FORMAT = 1
# No element is wider, so whole blocks are whole elements.
BLOCK_ALIGNMENT_BYTES = 16
_MOST_BLOCK_BYTES = 256 * MIB
_LEAST_BLOCK_BYTES, _BLOCK_BYTES, _LEAST_BLOCKS = MIB, 8 * MIB, 64
_SHA256_DIGITS = 64

# What to do about bytes that are not those of the manifest: raise it, or tell it and go on.
OnFlaw = Callable[[CheckpointError], None]


def refuse(flaw: CheckpointError) -> None:
    """Raise it."""
    raise flaw


class FileDigests(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file. `etag` is the service's after the upload, without quotes, or "" if it gave none; `sha256` is in hex.

    `header_sha256` is of `[0, data_start)`: SHA-256 costs no import on the way to the plan, where headers are read. `crc64nvme` holds the blocks' CRC-64/NVME, 8 bytes each, most significant first (base64 in JSON).
    """

    size_bytes: int
    etag: str = ""
    sha256: str
    data_start: int = 0
    header_sha256: str = ""
    crc64nvme: bytes

    def blocks(self, block_bytes: int) -> BlockDigests:
        """The digests as the loader takes them."""
        return BlockDigests(self.size_bytes, self.data_start, block_bytes, self.crc64nvme)


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every file of the checkpoint by its name; blocks have `block_bytes`, but for headers and last ones.

    `source` is where the files came from, `hf://org/name@commit`; of a folder there is none.
    """

    format: int = FORMAT
    block_bytes: int
    source: str | msgspec.UnsetType = msgspec.UNSET
    files: dict[str, FileDigests]

    def blocks_of(self, name: str) -> BlockDigests | None:
        """The block digests of one file, if it is in the manifest."""
        found = self.files.get(name)
        return found.blocks(self.block_bytes) if found else None


class _Format(msgspec.Struct):
    format: int


def block_bytes_for(checkpoint_bytes: int) -> int:
    """8 MiB, or less for a small checkpoint: a few blocks for every lane."""
    fitting = checkpoint_bytes // _LEAST_BLOCKS // _LEAST_BLOCK_BYTES * _LEAST_BLOCK_BYTES
    return max(_LEAST_BLOCK_BYTES, min(_BLOCK_BYTES, fitting))


def encoded(manifest: Manifest) -> bytes:
    """The manifest's JSON: the same bytes for the same files."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=1) + b"\n"


def parse_manifest(data: bytes) -> Manifest:
    """The manifest of a `coldstream.json`.

    Raises:
        CheckpointError: Not JSON, of another format, or a file's digests do not fit its size.
    """
    try:
        found = msgspec.json.decode(data, type=_Format).format
        if found != FORMAT:
            raise CheckpointError(f"{MANIFEST_NAME}: format {found} is not known here ({FORMAT} is): push again")
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{MANIFEST_NAME}: not a manifest: {error}: push again") from error
    if not 0 < manifest.block_bytes <= _MOST_BLOCK_BYTES or manifest.block_bytes % BLOCK_ALIGNMENT_BYTES:
        raise CheckpointError(f"{MANIFEST_NAME}: blocks of {manifest.block_bytes} bytes: push again")
    for name, file in manifest.files.items():
        _check(name, file, manifest.block_bytes)
    return manifest


def check_version(manifest: Manifest, version: BlobVersion) -> None:
    """Whether the manifest can be about this blob. An ETag says nothing here: of equal sizes the digests decide.

    Raises:
        CheckpointError: The shard is not in it, or has another size.
    """
    file = manifest.files.get(version.name)
    if file is None:
        raise CheckpointError(f"{version.name}: not in {MANIFEST_NAME}: it was uploaded after it: push again")
    if file.size_bytes != version.size_bytes:
        raise CheckpointError(
            f"{version.name}: has {version.size_bytes} bytes, {MANIFEST_NAME} says {file.size_bytes}: it was uploaded "
            "again, or a push is under way: push again"
        )


def bare_etag(etag: str | None) -> str:
    """An ETag without what some interfaces put around it."""
    return (etag or "").removeprefix("W/").strip('"')


def _check(name: str, file: FileDigests, block_bytes: int) -> None:
    where = f"{MANIFEST_NAME}: {name}"
    if not 0 <= file.data_start <= file.size_bytes:
        raise CheckpointError(f"{where}: data from byte {file.data_start} of {file.size_bytes}: push again")
    for digest in (file.sha256, *((file.header_sha256,) if file.data_start else ())):
        if len(digest) != _SHA256_DIGITS or not set(digest) <= set("0123456789abcdef"):
            raise CheckpointError(f"{where}: {digest!r:.80} is no SHA-256: push again")
    expected = file.blocks(block_bytes).count * CRC_BYTES
    if len(file.crc64nvme) != expected:
        raise CheckpointError(
            f"{where}: {len(file.crc64nvme)} bytes of block digests, {file.size_bytes} bytes of file need {expected}: push again"
        )
