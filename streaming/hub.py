"""The Hugging Face hub: a revision's files, each read once in order; the only file that knows huggingface_hub and its client.

Takes a repository, gives its files at one commit. Knows no container. huggingface_hub reads its own variables (HF_TOKEN,
HF_ENDPOINT and others) and the token of `hf auth login`. What it raises is not quoted: it holds URLs, and those that the hub
redirects to are signed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2
from huggingface_hub import HfApi, constants, get_session, hf_hub_url, hf_raise_for_status
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import ModelInfo, RepoSibling
from huggingface_hub.utils import build_hf_headers, parse_ratelimit_headers

from streaming.causes import Cause
from streaming.checkpoint import INDEX_NAME
from streaming.errors import AccessDenied, BlobNotFound, CheckpointError, SourceError, SourceUnavailable
from streaming.manifest import FileDigests
from streaming.options import SourceOptions
from streaming.retry_policy import Policy
from streaming.upload_origin import SCHEME, HubRevision, Origin, Stored, choose

# The hub's plain downloads end at 50 GB; a larger file takes several.
_MOST_BYTES = 32 << 30
# Shown; a user and a password in HF_ENDPOINT are not.
_HUB = re.sub(r"//[^/]*@", "//", constants.ENDPOINT)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-")
_TRANSIENT = {int(cause): cause for cause in Cause if cause.isdigit() and cause is not Cause.ROLE}
_PARTIAL_CONTENT = 206
_DENIED = (401, 403)

_log = logging.getLogger(__name__)
# They log requests with their URLs, and a signature is a part of those.
for _name in ("huggingface_hub", "httpx2", "httpcore2"):
    logging.getLogger(_name).setLevel(logging.ERROR)


class _Broken(Exception):
    """An answer that another request may give better; with `retry_after_s` where the hub says when."""

    def __init__(self, cause: Cause, retry_after_s: float = 0.0):
        super().__init__(cause)
        self.cause = cause
        self.retry_after_s = retry_after_s


def open_repository(wanted: HubRevision, options: SourceOptions) -> Origin:
    """The files of a repository that a push uploads, all of the commit that the revision is now.

    Raises:
        SourceError: The hub does not give it: BlobNotFound, AccessDenied (gated, or a token that may not), SourceUnavailable.
        CheckpointError: It has no safetensors checkpoint.
    """
    patience = _Patience(f"{SCHEME}{wanted.repo_id}", options, time.sleep)
    while True:
        try:
            info = _info(wanted, options.request_timeout_s)
        except _Broken as broken:
            patience.wait(broken)
        else:
            return _origin(_Repository(wanted.repo_id, str(info.sha), options), info)


def _info(wanted: HubRevision, timeout_s: float) -> ModelInfo:
    """What the hub says of a revision: its commit and its files, in one request."""
    with _translated(wanted.repo_id):
        try:
            return HfApi().model_info(wanted.repo_id, revision=wanted.revision, files_metadata=True, timeout=timeout_s)
        except (KeyError, TypeError) as error:  # JSON of somebody else
            raise _no_hub(wanted.repo_id, error) from error


def _origin(repository: _Repository, info: ModelInfo) -> Origin:
    siblings = info.siblings or []
    files = {sibling.rfilename: _file(repository, sibling) for sibling in siblings if "/" not in sibling.rfilename}
    folders = sorted({f"{head}/" for head, slash, _ in (each.rfilename.partition("/") for each in siblings) if slash})

    def read_index() -> bytes:
        return b"".join(files[INDEX_NAME].pieces(time.sleep))

    chosen = choose(str(repository), [*files, *folders], read_index)
    _log.info("%s is at commit %s", repository, repository.commit)
    return Origin(repository.source, [files[name] for name in chosen])


def _file(repository: _Repository, sibling: RepoSibling) -> HubFile:
    sha256 = sibling.lfs.sha256 if sibling.lfs else ""
    return HubFile(repository, sibling.rfilename, sibling.size or 0, sha256, sibling.blob_id or "")


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
        git_sha1 = hashlib.sha1(b"blob %d\0" % self.size_bytes, usedforsecurity=False)
        for piece in self.repository.read(self.name, self.size_bytes, pause):
            if not self.sha256:
                git_sha1.update(piece)
            yield piece
        if not self.sha256 and git_sha1.hexdigest() != self.git_sha1:
            raise CheckpointError(
                f"{self.name}: git's SHA-1 of what came is {git_sha1.hexdigest()}, the hub says {self.git_sha1}: push again"
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
            try:
                for piece in self._range(name, at, min(size_bytes, at + _MOST_BYTES)):
                    at += len(piece)
                    patience.restore()
                    yield piece
            except _Broken as broken:
                patience.wait(broken)

    def _range(self, name: str, start: int, end: int) -> Iterator[bytes]:
        """Bytes `[start, end)` as far as one answer gives them."""
        url = hf_hub_url(self.repo_id, name, revision=self.commit)
        # The last byte is inclusive: HTTP is spoken here.
        asked = {"Accept-Encoding": "identity", "Range": f"bytes={start}-{end - 1}"}
        timeout = httpx2.Timeout(self.options.read_timeout_s, connect=self.options.connect_timeout_s)
        with (
            _translated(self.repo_id),
            get_session().stream("GET", url, headers={**build_hf_headers(), **asked}, timeout=timeout) as answer,
        ):
            hf_raise_for_status(answer)
            at = _first_byte(answer)
            if at > start:
                raise _Broken(Cause.WRONG_RANGE)
            for piece in answer.iter_bytes():
                wanted = piece[max(start - at, 0) : end - at]
                at += len(piece)
                if wanted:
                    yield wanted
                if at >= end:
                    return
        raise _Broken(Cause.TRUNCATED)


def _first_byte(answer: httpx2.Response) -> int:
    """Where the answer begins: a server may give the whole file instead of a range."""
    if answer.status_code != _PARTIAL_CONTENT:
        return 0
    found = _CONTENT_RANGE.match(answer.headers.get("Content-Range", ""))
    if found is None:
        raise _Broken(Cause.WRONG_RANGE)
    return int(found[1])


class _Patience:
    """Waits before an attempt is repeated, or gives up: counted anew after every byte that came."""

    def __init__(self, what: str, options: SourceOptions, pause: Callable[[float], object]):
        self._what = what
        self._policy = Policy(options.max_retries, options.retry_timeout_s)
        self._pause = pause
        self.restore()

    def restore(self) -> None:
        """Something came."""
        self._retries = 0
        self._began_s = time.monotonic()

    def wait(self, broken: _Broken) -> None:
        """Return when it is time for the next attempt.

        Raises:
            SourceUnavailable: There is to be none.
        """
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
                f"{self._what}: no whole answer from {_HUB} after {self._retries} retries ({broken.cause})"
                f"{later}: check the network (and HF_ENDPOINT), then push again: files that are done stay done",
                cause=broken.cause,
            ) from broken
        _log.info("%s: %s, trying again in %.1f s", self._what, broken.cause, wait_s)
        self._retries += 1
        self._pause(wait_s)


@contextmanager
def _translated(repo_id: str) -> Iterator[None]:
    """What the client raises as ours, or as `_Broken` where another attempt may do."""
    try:
        yield
    except HfHubHTTPError as error:
        raise _refusal(repo_id, error) from error
    except HFValidationError as error:
        raise SourceError(f"{repo_id}: no name of a repository: write org/name") from error
    except OfflineModeIsEnabled as error:
        raise SourceUnavailable(f"{SCHEME}{repo_id}: HF_HUB_OFFLINE is set: unset it to push from the hub") from error
    except httpx2.TransportError as error:
        if (cause := _cause(error)) is None:
            raise _no_hub(repo_id, error) from error
        raise _Broken(cause) from error
    except (httpx2.HTTPError, httpx2.InvalidURL, json.JSONDecodeError, UnicodeError) as error:
        raise _no_hub(repo_id, error) from error


def _no_hub(repo_id: str, error: Exception) -> SourceUnavailable:
    return SourceUnavailable(
        f"{SCHEME}{repo_id}: {_HUB} does not answer as the hub does ({type(error).__name__}): "
        "check HF_ENDPOINT, HF_TOKEN and proxies"
    )


def _refusal(repo_id: str, error: HfHubHTTPError) -> Exception:
    """What a status of 400 or more means."""
    status = error.response.status_code
    what = f"{SCHEME}{repo_id}"
    page = f"{_HUB}/{repo_id}"
    if isinstance(error, GatedRepoError):
        return AccessDenied(f"{what}: gated: accept its licence at {page} and set HF_TOKEN", status=status)
    if isinstance(error, RevisionNotFoundError):
        return BlobNotFound(f"{what}: no such branch, tag or commit: check --revision", status=status)
    if isinstance(error, RemoteEntryNotFoundError):
        return BlobNotFound(f"{what}: a file of its list is not there: push again", status=status)
    if isinstance(error, RepositoryNotFoundError):
        return BlobNotFound(
            f"{what}: no such repository at {_HUB} (and no folder of that name here), or a private one: check the name, "
            "or set HF_TOKEN",
            status=status,
        )
    if status in _DENIED:
        return AccessDenied(
            f"{what}: access denied ({status}): set HF_TOKEN to a token that may read it, and accept its licence at {page}",
            status=status,
        )
    if cause := _TRANSIENT.get(status):
        return _Broken(cause, _retry_after_s(error.response))
    return SourceUnavailable(f"{what}: {_HUB} answered {status}: check HF_ENDPOINT", status=status)


def _retry_after_s(answer: httpx2.Response) -> float:
    """For how long the hub asks to wait: 0 where it does not."""
    text = answer.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    limit = parse_ratelimit_headers(answer.headers)
    return float(limit.reset_in_seconds) if limit and limit.remaining == 0 else 0.0


def _cause(error: httpx2.TransportError) -> Cause | None:
    """Why there was no whole answer; None where the next attempt would fail, too."""
    if isinstance(error, httpx2.TimeoutException):
        return Cause.TIMEOUT
    if isinstance(error, httpx2.RemoteProtocolError):
        return Cause.TRUNCATED
    if not isinstance(error, httpx2.NetworkError | httpx2.ProxyError):
        return None
    for reason in _reasons(error):
        if isinstance(reason, ssl.SSLCertVerificationError):
            return None
        if isinstance(reason, socket.gaierror):
            return Cause.DNS
        if isinstance(reason, ConnectionRefusedError):
            return Cause.REFUSED
    return Cause.CONNECT if isinstance(error, httpx2.ConnectError) else Cause.RESET


def _reasons(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
