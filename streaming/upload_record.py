"""What a container says of a checkpoint: the blobs under its prefix, its manifest, and how far a push from the hub came.

Takes a container's client, gives what is stored; writes `coldstream.json` and, while a push is under way,
`coldstream.partial.json`. Reads no file that is pushed.
"""

from __future__ import annotations

import hashlib
import logging
import threading

import msgspec
from azure.core.exceptions import HttpResponseError, ResourceExistsError, ResourceNotFoundError
from azure.storage.blob import BlobProperties, ContainerClient, ContentSettings

from streaming.blob_client import blob_name
from streaming.errors import CheckpointError
from streaming.manifest import (
    MANIFEST_NAME,
    PARTIAL_NAME,
    FileDigests,
    Manifest,
    bare_etag,
    encoded,
    parse_manifest,
)
from streaming.upload_origin import Stored
from streaming.uri import AzureLocation

_log = logging.getLogger(__name__)


class Record:
    """The container's own word for its files.

    Args:
        container: The container, which is made if it is missing.
        location: The checkpoint's place in it.
        block_bytes: How this push cuts files; digests of other blocks are of no use to it.
        source: Where its files come from, "" for a folder: one of those is known by its bytes, and needs no record.
    """

    def __init__(self, container: ContainerClient, location: AzureLocation, block_bytes: int, source: str):
        self._container = container
        self._location = location
        self._block_bytes = block_bytes
        self._source = source
        self._lock = threading.Lock()
        self._blobs = {blob.name: blob for blob in _list_or_create(container, location)}
        self._is_partial = self._blob(PARTIAL_NAME) is not None
        manifests = [found for name in (MANIFEST_NAME, PARTIAL_NAME) if source and (found := self._read(name))]
        self._said = {
            name: (file, "" if found.source is msgspec.UNSET else found.source)
            for found in manifests
            for name, file in found.files.items()
            if self._is_of_what_is_there(name, file)
        }
        self._done = {name: file for name, (file, from_where) in self._said.items() if from_where == source}

    def stored(self, name: str) -> Stored | None:
        """The blob of this file, if there is one."""
        blob = self._blob(name)
        if blob is None:
            return None
        md5 = blob.content_settings.content_md5
        return Stored(blob.size, bytes(md5) if md5 else None, bare_etag(blob.etag), *self._said.get(name, (None, "")))

    def note(self, name: str, digests: FileDigests) -> None:
        """A file is whole now: who repeats this push, should it be cut off, need not fetch it again."""
        if not self._source:
            return
        with self._lock:
            self._done[name] = digests
            self._is_partial = True
            self._write(PARTIAL_NAME, self._done)

    def finish(self, files: dict[str, FileDigests]) -> None:
        """Every file is whole: say so, unless it is said already."""
        self._write(MANIFEST_NAME, files)
        if not self._is_partial:
            return
        try:
            self._container.delete_blob(blob_name(self._location, PARTIAL_NAME))
        except HttpResponseError as error:
            _log.info("%s stays there, and does no harm: it could not be deleted (%s)", PARTIAL_NAME, error.status_code)

    def _is_of_what_is_there(self, name: str, file: FileDigests) -> bool:
        """Whether this is about the blob that is there now: of another version of it, nothing is believed."""
        blob = self._blob(name)
        return (
            blob is not None and file.etag != "" and (file.etag, file.size_bytes) == (bare_etag(blob.etag), blob.size)
        )

    def _blob(self, name: str) -> BlobProperties | None:
        return self._blobs.get(blob_name(self._location, name))

    def _read(self, name: str) -> Manifest | None:
        """A manifest that is there and of use to this push."""
        if self._blob(name) is None:
            return None
        try:
            found = parse_manifest(self._container.download_blob(blob_name(self._location, name)).readall())
        except CheckpointError as error:
            _log.info("%s, which this push does", error)
            return None
        except ResourceNotFoundError:
            return None
        return found if found.block_bytes == self._block_bytes else None

    def _write(self, name: str, files: dict[str, FileDigests]) -> None:
        content = encoded(Manifest(block_bytes=self._block_bytes, source=self._source or msgspec.UNSET, files=files))
        md5 = hashlib.md5(content, usedforsecurity=False).digest()
        blob = self._blob(name)
        if blob and (blob.size, bytes(blob.content_settings.content_md5 or b"")) == (len(content), md5):
            return
        settings = ContentSettings(content_type="application/json", content_md5=bytearray(md5))
        client = self._container.get_blob_client(blob_name(self._location, name))
        client.upload_blob(content, overwrite=True, validate_content=True, content_settings=settings)


def _list_or_create(container: ContainerClient, location: AzureLocation) -> list[BlobProperties]:
    """The blobs under the prefix; creates a missing container."""
    prefix = f"{location.prefix}/" if location.prefix else None
    try:
        return list(container.list_blobs(name_starts_with=prefix))
    except ResourceNotFoundError:
        _log.info("container %s does not exist: creating it", location.container)
    try:
        container.create_container()
    except ResourceExistsError:
        _log.info("container %s was created by somebody else meanwhile", location.container)
    return []
