"""Push: a local checkpoint folder into an Azure container, checked by the service, free to repeat.

Takes a folder and an `az://` URI, gives a report. Knows no other store, no tensor and no environment.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from azure.core.exceptions import ResourceExistsError, ResourceNotFoundError
from azure.storage.blob import BlobClient, ContainerClient, ContentSettings
from msgspec.structs import replace
from tqdm import tqdm

from streaming.blob_client import blob_name, open_container, translated
from streaming.digests import summarize
from streaming.errors import CheckpointError, SourceError
from streaming.manifest import MANIFEST_NAME, FileDigests, Manifest, bare_etag, block_bytes_for, encoded
from streaming.options import MIB, PipelineOptions, SourceOptions
from streaming.uri import AzureLocation, parse

# Weights in a format that is not served, often beside the safetensors and as large.
_LEFT_OUT_SUFFIXES = frozenset({".bin", ".gguf", ".h5", ".lock", ".msgpack", ".onnx", ".ot", ".pt", ".pth", ".tflite"})
_BLOCKS = PipelineOptions(chunk_bytes=8 * MIB)
_FILES_AT_ONCE = 4
_NEEDS = "push needs a credential that may list, read, create and write there (Storage Blob Data Contributor)"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PushReport:
    """What one push did: how many files it sent and left alone, and the bytes of those that it sent; without the manifest."""

    uploaded: int
    skipped: int
    uploaded_bytes: int


@dataclass(frozen=True)
class _Existing:
    """A blob that is already there; `md5` is what was stored with it."""

    size_bytes: int
    md5: bytes | None
    etag: str


class _Sent(NamedTuple):
    """A file that is in the container now."""

    path: Path
    digests: FileDigests
    was_uploaded: bool


class _Stopped(Exception):
    """Another file failed: this one need not go on."""


def push(
    folder: Path,
    uri: str,
    source: SourceOptions,
    pipeline: PipelineOptions = _BLOCKS,
    *,
    quiet: bool = False,
) -> PushReport:
    """Upload the files of a checkpoint folder, except those that are there unchanged.

    Shards go first, so that a new model is found only when its weights are there. The service checks the
    MD5 of every block that it receives, and keeps the file's, by which the next push knows it. The manifest goes last: it
    replaces an older one at once, and until then that one refuses the shards that were replaced before it, so that nobody
    serves half of each. One that was not changed is left alone.

    Args:
        folder: Holds at least one `*.safetensors`; its subfolders and hidden files are left out.
        uri: `az://container/prefix` or the container's https URL; the container is made if missing.
        source: Account, credential, timeouts and retries.
        pipeline: How many blocks may be under way at once, and how large one is.
        quiet: Show no progress bar; without a terminal there is none either.

    Raises:
        CheckpointError: The folder is missing or has no shard.
        SourceError: The URI is not Azure's; or AccessDenied, BlobNotFound, SourceUnavailable.
    """
    files = checkpoint_files(folder)
    location = parse(uri, source.azure)
    if not isinstance(location, AzureLocation):
        raise SourceError(f"{location}: push writes to Azure only: use az://container/prefix")
    total_bytes = sum(path.stat().st_size for path in files)
    block_bytes = block_bytes_for(total_bytes)
    # None: a bar only where stderr is a terminal.
    bar = tqdm(total=total_bytes, unit="B", unit_scale=True, desc="push", disable=quiet or None)
    with bar, _translated(location), open_container(location, source, pipeline.chunk_bytes) as container:
        existing = _list_or_create(container, location)
        shards = [path for path in files if path.suffix == ".safetensors"]
        upload = _Push(container, location, existing, bar, max(1, pipeline.lanes // _FILES_AT_ONCE), block_bytes)
        there = upload.send(shards) + upload.send([path for path in files if path not in shards])
        upload.send_manifest({file.path.name: file.digests for file in there})
    sent = [file for file in there if file.was_uploaded]
    sent_bytes = sum(file.digests.size_bytes for file in sent)
    return PushReport(uploaded=len(sent), skipped=len(files) - len(sent), uploaded_bytes=sent_bytes)


def checkpoint_files(folder: Path) -> list[Path]:
    """The files of `folder` that a push uploads, by name; what it leaves out is logged.

    Raises:
        CheckpointError: The folder is missing or has no `*.safetensors`.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    visible = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    files = [path for path in visible if path.is_file() and path.suffix not in _LEFT_OUT_SUFFIXES]
    files = [path for path in files if path.name != MANIFEST_NAME]  # of the container that the folder was taken from
    if not any(path.suffix == ".safetensors" for path in files):
        raise CheckpointError(f"{folder}: no *.safetensors in it: only safetensors checkpoints are served")
    left_out = [path.name for path in visible if path not in files]
    if left_out:
        _log.info("left out of the push: %s", ", ".join(left_out))
    return files


class _Push:
    """The files of one push on their way, a few at once."""

    def __init__(
        self,
        container: ContainerClient,
        location: AzureLocation,
        existing: dict[str, _Existing],
        bar: tqdm[Any],
        blocks_per_file: int,
        block_bytes: int,
    ):
        self._container = container
        self._location = location
        self._existing = existing
        self._bar = bar
        self._blocks_per_file = blocks_per_file
        self._block_bytes = block_bytes
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def send(self, files: Sequence[Path]) -> list[_Sent]:
        """Upload those of `files` that are not there."""
        with ThreadPoolExecutor(_FILES_AT_ONCE, "push") as pool:
            futures = [pool.submit(self._send_if_changed, path) for path in files]
            try:
                return [future.result() for future in futures]
            except BaseException:
                # Also on Ctrl-C: a shard under way would otherwise go on for minutes.
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def send_manifest(self, files: dict[str, FileDigests]) -> None:
        """Say what the container holds now, unless it is said already."""
        content = encoded(Manifest(block_bytes=self._block_bytes, files=files))
        md5 = hashlib.md5(content, usedforsecurity=False).digest()
        name = blob_name(self._location, MANIFEST_NAME)
        if self._unchanged(name, len(content), md5) is None:
            settings = ContentSettings(content_type="application/json", content_md5=bytearray(md5))
            blob = self._container.get_blob_client(name)
            blob.upload_blob(content, overwrite=True, validate_content=True, content_settings=settings)

    def _send_if_changed(self, path: Path) -> _Sent:
        md5, digests = summarize(path, self._block_bytes)
        name = blob_name(self._location, path.name)
        if (etag := self._unchanged(name, digests.size_bytes, md5)) is not None:
            self._advance(digests.size_bytes)
            return _Sent(path, replace(digests, etag=etag), was_uploaded=False)
        etag = self._upload(self._container.get_blob_client(name), path, md5)
        return _Sent(path, replace(digests, etag=etag), was_uploaded=True)

    def _unchanged(self, name: str, size_bytes: int, md5: bytes) -> str | None:
        """The ETag of the blob that is there with these bytes, if there is one."""
        found = self._existing.get(name)
        return found.etag if found and (found.size_bytes, found.md5) == (size_bytes, md5) else None

    def _upload(self, blob: BlobClient, path: Path, md5: bytes) -> str:
        """Send a file; gives the new blob's ETag."""
        sent_bytes = 0

        def on_progress(current_bytes: int, _total_bytes: int | None) -> None:
            nonlocal sent_bytes
            if self._stop.is_set():
                raise _Stopped
            self._advance(current_bytes - sent_bytes)
            sent_bytes = current_bytes

        with path.open("rb") as file:
            answer = blob.upload_blob(
                file,
                length=path.stat().st_size,
                overwrite=True,
                validate_content=True,
                content_settings=ContentSettings(content_md5=bytearray(md5)),
                max_concurrency=self._blocks_per_file,
                progress_hook=on_progress,
            )
        return bare_etag(answer.get("etag"))

    def _advance(self, nbytes: int) -> None:
        with self._lock:
            self._bar.update(nbytes)


def _list_or_create(container: ContainerClient, location: AzureLocation) -> dict[str, _Existing]:
    """The blobs under the prefix, by their names in the container; creates a missing container."""
    prefix = f"{location.prefix}/" if location.prefix else None
    try:
        return {
            blob.name: _Existing(
                blob.size, bytes(md5) if (md5 := blob.content_settings.content_md5) else None, bare_etag(blob.etag)
            )
            for blob in container.list_blobs(name_starts_with=prefix)
        }
    except ResourceNotFoundError:
        _log.info("container %s does not exist: creating it", location.container)
    try:
        container.create_container()
    except ResourceExistsError:
        _log.info("container %s was created by somebody else meanwhile", location.container)
    return {}


@contextmanager
def _translated(location: AzureLocation) -> Iterator[None]:
    """The service's errors as ours, and those of the files that are read."""
    try:
        with translated(location, _NEEDS):
            yield
    except OSError as error:
        raise CheckpointError(f"{error.filename}: cannot be read: {error.strerror}") from error
