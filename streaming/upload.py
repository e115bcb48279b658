"""Push: a checkpoint into an Azure container, checked by the service, free to repeat.

Takes a local folder or a revision of a Hugging Face repository, and an `az://` URI; gives a report. No file of a repository
touches the disk. Knows no other store, no tensor and no environment.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from azure.storage.blob import ContainerClient
from msgspec.structs import replace
from tqdm import tqdm

from streaming.blob_client import blob_name, open_container, translated
from streaming.digests import summarize_pieces
from streaming.errors import CheckpointError, SourceError
from streaming.manifest import FileDigests, block_bytes_for
from streaming.options import MIB, PipelineOptions, SourceOptions
from streaming.upload_blocks import BlockUpload
from streaming.upload_origin import HubRevision, Origin, PushFile, open_folder
from streaming.upload_record import Record
from streaming.uri import AzureLocation, parse

_BLOCKS = PipelineOptions(chunk_bytes=8 * MIB)
_FILES_AT_ONCE = 4
_NEEDS = "push needs a credential that may list, read, create and write there (Storage Blob Data Contributor)"


@dataclass(frozen=True)
class PushReport:
    """What one push did: how many files it sent and left alone, and the bytes of those that it sent; without the manifest."""

    uploaded: int
    skipped: int
    uploaded_bytes: int


class _Sent(NamedTuple):
    """A file that is in the container now."""

    name: str
    digests: FileDigests
    was_uploaded: bool


class _Stopped(Exception):
    """Another file failed: this one need not go on."""


def push(
    origin: Path | HubRevision,
    uri: str,
    source: SourceOptions,
    pipeline: PipelineOptions = _BLOCKS,
    *,
    quiet: bool = False,
) -> PushReport:
    """Upload the files of a checkpoint, except those that are there unchanged.

    Shards go first, so that a new model is found only when its weights are there. The service checks the
    MD5 of every block that it receives, and keeps the file's, by which the next push of a folder knows it; a file of the hub
    is known by its SHA-256 in the manifest. A file is to be seen once it is whole and as the hub says. The manifest goes
    last: it replaces an older one at once, and until then that one refuses the shards that were replaced before it, so that
    nobody serves half of each. One that was not changed is left alone.

    In memory are at most `pipeline.lanes` blocks under way, and for each of four files one that is being filled and its copy.

    Args:
        origin: A folder, or what to read from the hub: at least one `*.safetensors`; subfolders and hidden files are left out.
        uri: `az://container/prefix` or the container's https URL; the container is made if missing.
        source: Account, credential, timeouts and retries; those of the hub, too.
        pipeline: How many blocks may be under way at once, and how large one is.
        quiet: Show no progress bar; without a terminal there is none either.

    Raises:
        CheckpointError: The folder is missing or has no shard, or the hub's bytes are not those that it announced.
        SourceError: The URI is not Azure's; or AccessDenied, BlobNotFound, SourceUnavailable, of Azure or of the hub.
    """
    location = parse(uri, source.azure)
    if not isinstance(location, AzureLocation):
        raise SourceError(f"{location}: push writes to Azure only: use az://container/prefix")
    opened = _open(origin, source)
    total_bytes = sum(file.size_bytes for file in opened.files)
    block_bytes = block_bytes_for(total_bytes)
    # None: a bar only where stderr is a terminal.
    bar = tqdm(total=total_bytes, unit="B", unit_scale=True, desc="push", disable=quiet or None)
    with bar, translated(location, _NEEDS), open_container(location, source, pipeline.chunk_bytes) as container:
        record = Record(container, location, block_bytes, opened.source)
        shards = [file for file in opened.files if file.name.endswith(".safetensors")]
        upload = _Push(container, location, record, bar, pipeline, block_bytes)
        there = upload.send(shards) + upload.send([file for file in opened.files if file not in shards])
        record.finish({file.name: file.digests for file in there})
    sent = [file for file in there if file.was_uploaded]
    sent_bytes = sum(file.digests.size_bytes for file in sent)
    return PushReport(uploaded=len(sent), skipped=len(there) - len(sent), uploaded_bytes=sent_bytes)


def _open(origin: Path | HubRevision, source: SourceOptions) -> Origin:
    if isinstance(origin, Path):
        return open_folder(origin)
    from streaming.hub import open_repository

    return open_repository(origin, source)


class _Push:
    """The files of one push on their way, a few at once."""

    def __init__(
        self,
        container: ContainerClient,
        location: AzureLocation,
        record: Record,
        bar: tqdm[Any],
        pipeline: PipelineOptions,
        block_bytes: int,
    ):
        self._container = container
        self._location = location
        self._record = record
        self._bar = bar
        self._pipeline = pipeline
        self._files_at_once = min(_FILES_AT_ONCE, pipeline.lanes)
        self._block_bytes = block_bytes
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def send(self, files: Sequence[PushFile]) -> list[_Sent]:
        """Upload those of `files` that are not there."""
        with (
            ThreadPoolExecutor(self._pipeline.lanes, "block") as lanes,
            ThreadPoolExecutor(self._files_at_once, "push") as pool,
        ):
            futures = [pool.submit(self._send_if_changed, file, lanes) for file in files]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                # Also on Ctrl-C: a shard under way would otherwise go on for minutes.
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [future.result() for future in futures]

    def _send_if_changed(self, file: PushFile, lanes: ThreadPoolExecutor) -> _Sent:
        stored = self._record.stored(file.name)
        if stored and (digests := file.unchanged(stored, self._block_bytes)):
            self._advance(digests.size_bytes)
            return _Sent(file.name, replace(digests, etag=stored.etag), was_uploaded=False)
        digests = self._upload(file, lanes)
        self._record.note(file.name, digests)
        return _Sent(file.name, digests, was_uploaded=True)

    def _upload(self, file: PushFile, lanes: ThreadPoolExecutor) -> FileDigests:
        """Send a file, in one pass over its bytes; gives its digests with the new blob's ETag."""
        blob = self._container.get_blob_client(blob_name(self._location, file.name))
        at_once = self._pipeline.lanes // self._files_at_once
        upload = BlockUpload(blob, file.size_bytes, self._pipeline.chunk_bytes, lanes, at_once, self._advance)
        md5, digests = summarize_pieces(file.name, file.size_bytes, self._sending(file, upload), self._block_bytes)
        if file.sha256 not in ("", digests.sha256):
            raise CheckpointError(
                f"{file.name}: the SHA-256 of what came is {digests.sha256}, the hub says {file.sha256}: it was not stored: "
                "push again"
            )
        return replace(digests, etag=upload.commit(md5))

    def _sending(self, file: PushFile, upload: BlockUpload) -> Iterator[bytes]:
        """The file's bytes, each handed to the upload first."""
        for piece in file.pieces(self._stop.wait):
            if self._stop.is_set():
                raise _Stopped
            upload.add(piece)
            yield piece

    def _advance(self, nbytes: int) -> None:
        with self._lock:
            self._bar.update(nbytes)
