"""Shards on the local disk, whole: the way of `host-staging`, which streaming is compared with.

Takes a location and the versions of its shards, gives a descriptor of each. What is downloaded (by
azure-storage-blob, from Azure only) has no name in any folder, so the kernel frees it with its last
descriptor; a local shard is opened where it is. Knows no tensor and no device.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any

from streaming.clock import boottime_s
from streaming.errors import BlobChanged, CheckpointError, DeviceError, SourceError, SourceUnavailable
from streaming.messages import BlobVersion, ShardTimes
from streaming.options import PipelineOptions, SourceOptions
from streaming.uri import AzureLocation, FileLocation, Location
from streaming.wire import MAX_FDS

if TYPE_CHECKING:
    from azure.storage.blob import ContainerClient

_NEEDS = "the credential needs the role Storage Blob Data Reader, or a SAS token with r and l"
# Dates have passed through a float.
_DATE_GRAIN_S = 1e-3


class Staging:
    """The disk as a destination.

    Args:
        location: Where the shards lie.
        source: Credential, timeouts and retries.
        pipeline: How many requests for one shard are in flight at once, and what one of them asks for.

    Raises:
        SourceError: Nothing can be staged from there.
    """

    def __init__(self, location: Location, source: SourceOptions, pipeline: PipelineOptions):
        if not isinstance(location, AzureLocation | FileLocation):
            raise SourceError(
                f"{location}: host-staging reads from Azure and from folders only: use --load-strategy direct-gpu"
            )
        self._location = location
        self._source = source
        self._pipeline = pipeline

    def check(self, shards: int) -> None:
        """Whether so many can be staged.

        Raises:
            CheckpointError: There are more than one message can carry.
        """
        if shards > MAX_FDS:
            raise CheckpointError(
                f"{self._location}: {shards} shards: host-staging takes {MAX_FDS}: use --load-strategy direct-gpu"
            )

    def stage(
        self,
        versions: Iterable[BlobVersion],
        on_staged: Callable[[BlobVersion, int], None],
        on_bytes: Callable[[], None],
    ) -> tuple[ShardTimes, ...]:
        """Put the shards on disk one after the other, and tell of those that were downloaded.

        `on_staged` gets a descriptor that is the caller's to close; `on_bytes` is called now and then, from any thread,
        while bytes come: a whole shard may take minutes.

        Raises:
            BlobChanged: A shard is not the one that was described.
            SourceError: One could not be read.
            DeviceError: The disk has no room for one.
            CheckpointError: There are more than one message can carry.
        """
        versions = tuple(versions)
        self.check(len(versions))
        if isinstance(self._location, FileLocation):
            for version in versions:
                on_staged(version, _opened(self._location, version))
            return ()
        return self._download_all(self._location, versions, on_staged, on_bytes)

    def _download_all(
        self,
        location: AzureLocation,
        versions: Iterable[BlobVersion],
        on_staged: Callable[[BlobVersion, int], None],
        on_bytes: Callable[[], None],
    ) -> tuple[ShardTimes, ...]:
        from streaming.blob_client import blob_name, open_container, translated

        times = []
        with open_container(location, self._source, self._pipeline.chunk_bytes) as blobs:
            for version in versions:
                shard = replace(location, prefix=blob_name(location, version.name))
                start_s = boottime_s()
                try:
                    with tempfile.TemporaryFile(prefix="coldstream-") as file:
                        with translated(shard, _NEEDS):
                            _download(blobs, shard, version, self._pipeline.lanes, file, on_bytes)
                        fd = os.dup(file.fileno())
                except OSError as error:  # the network's are translated
                    raise DeviceError(
                        f"{shard} ({version.size_bytes} bytes) cannot be staged on disk: {error.strerror}: make room, "
                        "name another folder with TMPDIR, or use --load-strategy direct-gpu"
                    ) from error
                fetch = start_s, boottime_s()
                times.append(ShardTimes(shard=version.name, nbytes=version.size_bytes, fetch=fetch))
                on_staged(version, fd)
        return tuple(times)


def _download(
    blobs: ContainerClient,
    shard: AzureLocation,
    version: BlobVersion,
    lanes: int,
    file: IO[bytes],
    on_bytes: Callable[[], None],
) -> None:
    """Write the whole shard to `file`, of exactly this version."""
    from azure.core import MatchConditions

    pin: dict[str, Any] = {}
    if version.is_pinned:
        pin = {"etag": version.etag, "match_condition": MatchConditions.IfNotModified}
    blobs.download_blob(shard.prefix, max_concurrency=lanes, progress_hook=lambda *_: on_bytes(), **pin).readinto(file)
    file.flush()
    found_bytes = os.fstat(file.fileno()).st_size
    if found_bytes != version.size_bytes:
        raise SourceUnavailable(f"{shard}: {found_bytes} bytes came instead of {version.size_bytes}")


def _opened(location: FileLocation, version: BlobVersion) -> int:
    path = location.folder / version.name
    try:
        with path.open("rb") as file:
            fd, status = os.dup(file.fileno()), os.fstat(file.fileno())
    except OSError as error:
        raise SourceUnavailable(f"{path}: {error.strerror}") from error
    if status.st_size != version.size_bytes or abs(status.st_mtime - version.modified_s) > _DATE_GRAIN_S:
        raise BlobChanged(f"{path} was overwritten during the load: start again to read the new version")
    return fd
