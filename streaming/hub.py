"""A revision of a Hugging Face repository as something to push: its files at one commit, each read once in order.

Takes a repository, gives an `Origin`; goes on where a connection broke. Knows no container and not the hub's client.
"""

from __future__ import annotations

import hashlib
import logging
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from streaming.checkpoint import INDEX_NAME
from streaming.errors import CheckpointError, SourceUnavailable
from streaming.hub_client import ENDPOINT, Broken, Commit, look_up, read_range
from streaming.manifest import FileDigests
from streaming.options import SourceOptions
from streaming.retry_policy import Policy
from streaming.upload_origin import SCHEME, HubRevision, Origin, Stored, choose

# The hub's plain downloads end at 50 GB; a larger file takes several.
_MOST_BYTES = 32 << 30

_log = logging.getLogger(__name__)


def open_repository(wanted: HubRevision, options: SourceOptions) -> Origin:
    """The files of a repository that a push uploads, all of the commit that the revision is now.

    Raises:
        SourceError: The hub does not give it: BlobNotFound, AccessDenied (gated, or a token that may not), SourceUnavailable.
        CheckpointError: It has no safetensors checkpoint.
    """
    patience = _Patience(f"{SCHEME}{wanted.repo_id}", options, time.sleep)
    while True:
        try:
            commit = look_up(wanted, options.request_timeout_s)
        except Broken as broken:
            patience.wait(broken)
        else:
            return _origin(_Repository(wanted.repo_id, commit.sha, options), commit)


def _origin(repository: _Repository, commit: Commit) -> Origin:
    files = {entry.path: HubFile(repository, *entry) for entry in commit.entries if "/" not in entry.path}
    folders = {f"{entry.path.partition('/')[0]}/" for entry in commit.entries if "/" in entry.path}

    def read_index() -> bytes:
        return b"".join(files[INDEX_NAME].pieces(time.sleep))

    chosen = choose(str(repository), [*files, *folders], read_index)
    _log.info("%s is at commit %s", repository, repository.commit)
    return Origin(repository.source, [files[name] for name in chosen])


@dataclass(frozen=True)
class HubFile:
    """A file of a repository; of a large one (LFS) the hub knows the SHA-256, of others (`sha256` "") git's own digest."""

    repository: _Repository
    name: str
    size_bytes: int
    sha256: str
    git_sha1: str

    def unchanged(self, stored: Stored, block_bytes: int) -> FileDigests | None:  # noqa: ARG002  (nothing is read)
        """What the container's manifest says of the blob, if that is this file: by its SHA-256, else by its commit."""
        said = stored.digests
        if said is None or said.size_bytes != self.size_bytes:
            return None
        is_same = said.sha256 == self.sha256 if self.sha256 else stored.source == self.repository.source
        return said if is_same else None

    def pieces(self, pause: Callable[[float], object]) -> Iterator[bytes]:
        """All of its bytes in order; a connection that breaks is replaced by one that goes on from there.

        Raises:
            SourceError: The hub does not give it, after every retry.
            CheckpointError: Git's digest of them is another one.
        """
        said = "" if self.sha256 else self.git_sha1
        git_sha1 = hashlib.sha1(b"blob %d\0" % self.size_bytes, usedforsecurity=False)
        for piece in self.repository.read(self.name, self.size_bytes, pause):
            if said:
                git_sha1.update(piece)
            yield piece
        if said and git_sha1.hexdigest() != said:
            raise CheckpointError(
                f"{self.name}: git's SHA-1 of what came is {git_sha1.hexdigest()}, the hub says {said}: push again"
            )


@dataclass(frozen=True)
class _Repository:
    """A repository at one commit."""

    repo_id: str
    commit: str
    options: SourceOptions

    @property
    def source(self) -> str:
        """What a manifest calls it."""
        return f"{SCHEME}{self.repo_id}@{self.commit}"

    def __str__(self) -> str:
        return f"{SCHEME}{self.repo_id}"

    def read(self, name: str, size_bytes: int, pause: Callable[[float], object]) -> Iterator[bytes]:
        """The bytes of a file, in order."""
        patience = _Patience(f"{self}/{name}", self.options, pause)
        at = 0
        while at < size_bytes:
            end = min(size_bytes, at + _MOST_BYTES)
            try:
                for piece in read_range(self.repo_id, self.commit, name, at, end, self.options):
                    at += len(piece)
                    patience.restore()
                    yield piece
            except Broken as broken:
                patience.wait(broken)


class _Patience:
    """Waits before an attempt is repeated, or gives up: counted anew after every byte that came."""

    def __init__(self, what: str, options: SourceOptions, pause: Callable[[float], object]):
        self._what = what
        self._policy = Policy(options.max_retries, options.retry_timeout_s)
        self._pause = pause
        self._retries = 0
        self._began_s = 0.0

    def restore(self) -> None:
        """Something came."""
        self._retries = 0

    def wait(self, broken: Broken) -> None:
        """Return when it is time for the next attempt.

        Raises:
            SourceUnavailable: There is to be none.
        """
        if self._retries == 0:
            # Not from the last byte: whoever takes the bytes may have been busy with it for long.
            self._began_s = time.monotonic()
        elapsed_s = time.monotonic() - self._began_s
        wait_s = self._policy.wait_s(
            broken.cause,
            retries=self._retries,
            elapsed_s=elapsed_s,
            load_s=elapsed_s,
            turn_s=broken.retry_after_s,
            draw=random.random(),  # noqa: S311  (jitter)
        )
        if wait_s is None:
            later = f", and the hub asks to wait for {broken.retry_after_s:.0f} s" if broken.retry_after_s else ""
            raise SourceUnavailable(
                f"{self._what}: no whole answer from {ENDPOINT} after {self._retries} retries ({broken.cause})"
                f"{later}: check the network (and HF_ENDPOINT), then push again: files that are done stay done",
                cause=broken.cause,
            ) from broken
        _log.info("%s: %s, trying again in %.1f s", self._what, broken.cause, wait_s)
        self._retries += 1
        self._pause(wait_s)
