"""What a push takes: a local folder or a revision of a Hugging Face repository, and which of its files.

Takes words and names, gives files that can be read once in order. Knows no container and no hub; of files, only local ones.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from streaming.checkpoint import INDEX_NAME, SINGLE_NAME, parse_index
from streaming.digests import summarize
from streaming.errors import CheckpointError, SourceError
from streaming.manifest import MANIFEST_NAME, PARTIAL_NAME, FileDigests

SCHEME = "hf://"
_SHARD_SUFFIX = ".safetensors"
# Weights in a format that is not served, often beside the safetensors and as large.
_LEFT_OUT_SUFFIXES = (*(".bin", ".gguf", ".h5", ".lock", ".msgpack", ".onnx", ".ot", ".pt", ".pth", ".tflite"),)
_OUR_NAMES = (MANIFEST_NAME, PARTIAL_NAME)  # of the container that the files were taken from
_PART = r"(?![.-])[\w.-]+"
_REPO_ID = re.compile(rf"{_PART}/{_PART}", re.ASCII)
_HUB_URI = re.compile(rf"{SCHEME}(?P<repo_id>{_PART}(?:/{_PART})?)(?:@(?P<revision>[^\s@?#]+))?", re.ASCII)
_PIECE_BYTES = 1 << 20

_log = logging.getLogger(__name__)


class HubRevision(NamedTuple):
    """A model on the Hugging Face hub at a branch, a tag or a commit; without one its main branch."""

    repo_id: str
    revision: str | None = None


@dataclass(frozen=True)
class Stored:
    """A blob that is there already; `md5` is what was stored with it.

    `digests` are what a manifest says of this very version, if one does, and `source` where that one's files came from.
    """

    size_bytes: int
    md5: bytes | None
    etag: str
    digests: FileDigests | None = None
    source: str = ""


class PushFile(Protocol):
    """A file to be pushed."""

    @property
    def name(self) -> str:
        """Its name in the checkpoint."""

    @property
    def size_bytes(self) -> int:
        """Its size."""

    @property
    def sha256(self) -> str:
        """What its SHA-256 must be, in hex; "" where nobody says."""

    def unchanged(self, stored: Stored, block_bytes: int) -> FileDigests | None:
        """The digests of the blob that is there, if that has this file's bytes."""

    def pieces(self, pause: Callable[[float], object]) -> Iterator[bytes]:
        """All of its bytes in order; `pause` waits for so many seconds."""


@dataclass(frozen=True)
class Origin:
    """The files of one checkpoint, and where they come from: `hf://org/name@commit`, "" for a folder."""

    source: str
    files: Sequence[PushFile]


@dataclass(frozen=True)
class LocalFile:
    """A file of a folder."""

    path: Path
    size_bytes: int
    sha256: str = ""

    @property
    def name(self) -> str:
        """Its name in the checkpoint."""
        return self.path.name

    def unchanged(self, stored: Stored, block_bytes: int) -> FileDigests | None:
        """The file's digests, if the blob's MD5 is its own: takes a pass over it, where the sizes agree.

        Raises:
            CheckpointError: It cannot be read.
        """
        if stored.size_bytes != self.size_bytes:
            return None
        with _named(self.path):
            md5, digests = summarize(self.path, block_bytes)
        return digests if stored.md5 == md5 else None

    def pieces(self, pause: Callable[[float], object]) -> Iterator[bytes]:  # noqa: ARG002  (a disk is not waited for)
        """Its bytes.

        Raises:
            CheckpointError: It cannot be read.
        """
        with _named(self.path), self.path.open("rb") as file:
            yield from iter(partial(file.read, _PIECE_BYTES), b"")


def parse_origin(text: str, revision: str = "") -> Path | HubRevision:
    """What the words name: a folder, or a repository of the hub (`org/name`, where nothing here is named so, or `hf://`).

    Raises:
        SourceError: Neither, or two revisions, or one of a folder.
    """
    if text.startswith(SCHEME):
        found = _HUB_URI.fullmatch(text)
        if found is None:
            raise SourceError(f"{text}: no repository of models: write hf://org/name or hf://org/name@revision")
        if revision and found["revision"] not in (None, revision):
            raise SourceError(f"{text}: --revision says {revision}: keep one of the two")
        return HubRevision(found["repo_id"], found["revision"] or revision or None)
    path = Path(text)
    if path.exists() or not _REPO_ID.fullmatch(text):
        if revision:
            raise SourceError(f"{text}: --revision is for a repository of the Hugging Face hub, this is a path here")
        return path
    return HubRevision(text, revision or None)


def open_folder(folder: Path) -> Origin:
    """The files of a local folder that a push uploads; raises as `checkpoint_files` does."""
    with _named(folder):
        return Origin("", [LocalFile(path, path.stat().st_size) for path in checkpoint_files(folder)])


def checkpoint_files(folder: Path) -> list[Path]:
    """The files of `folder` that a push uploads, by name; what it leaves out is logged.

    Raises:
        CheckpointError: The folder is missing or has no `*.safetensors`, or not those that its index names.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no such folder (a repository of the Hugging Face hub is org/name or hf://org/name)"
        )
    with _named(folder):
        names = [f"{path.name}{'' if path.is_file() else '/'}" for path in folder.iterdir()]
        chosen = choose(str(folder), names, (folder / INDEX_NAME).read_bytes)
    return [folder / name for name in chosen]


def choose(where: str, names: Sequence[str], read_index: Callable[[], bytes]) -> list[str]:
    """Which of the names in a folder a push uploads, sorted: what serves, and small files beside it.

    Of safetensors, those that `serve` would read: what the index names, else `model.safetensors`, else all. The others are
    the same weights in another cut or for another program (`consolidated.safetensors`).

    Args:
        where: The folder or repository, for messages.
        names: Of its first level; a folder's ends with a slash.
        read_index: Gives the bytes of `model.safetensors.index.json`; asked only if that is among the names.

    Raises:
        CheckpointError: There is no `*.safetensors`, or the index is damaged or names one that is not there.
    """
    visible = sorted(name for name in names if not name.startswith("."))
    files = [name for name in visible if not name.endswith(("/", *_LEFT_OUT_SUFFIXES)) and name not in _OUR_NAMES]
    shards = {name for name in files if name.endswith(_SHARD_SUFFIX)}
    if not shards:
        raise CheckpointError(f"{where}: no *.safetensors in it: only safetensors checkpoints are served")
    served = _served(shards, read_index if INDEX_NAME in files else None)
    if missing := sorted(served - shards):
        raise CheckpointError(
            f"{where}: {INDEX_NAME} names {missing[0]}, which is not in it: is the download complete?"
        )
    chosen = [name for name in files if name not in shards - served]
    if left_out := [name.rstrip("/") for name in visible if name not in chosen]:
        _log.info("left out of the push: %s", ", ".join(left_out))
    return chosen


def _served(shards: set[str], read_index: Callable[[], bytes] | None) -> set[str]:
    if read_index is not None:
        return set(parse_index(read_index()).values())
    return {SINGLE_NAME} if SINGLE_NAME in shards else shards


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """The operating system's error as ours."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{error.filename or path}: cannot be read: {error.strerror}") from error
