"""huggingface_hub's client as we use it, and its errors as ours: one request at a time, the only file that knows it.

Takes a repository, gives what is in it and bytes of its files; tries nothing again. huggingface_hub reads its own variables
(HF_TOKEN, HF_ENDPOINT and others) and the token of `hf auth login`. What it raises is not quoted: it holds URLs, and those that
the hub redirects to are signed.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

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
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import build_hf_headers, parse_ratelimit_headers

from streaming.causes import TRANSIENT_STATUSES, Cause
from streaming.errors import AccessDenied, BlobNotFound, SourceError, SourceUnavailable
from streaming.exception_causes import cause_of_exception
from streaming.options import SourceOptions
from streaming.upload_origin import SCHEME, HubRevision

_T = TypeVar("_T")

# Shown; a user and a password in HF_ENDPOINT are not.
ENDPOINT = re.sub(r"//[^/]*@", "//", constants.ENDPOINT)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-")
_PARTIAL_CONTENT = 206
_DENIED = (401, 403)

# They log requests with their URLs, and a signature is a part of those.
for _name in ("huggingface_hub", "httpx2", "httpcore2"):
    logging.getLogger(_name).setLevel(logging.ERROR)


class Broken(Exception):
    """An answer that another request may give better; with `retry_after_s` where the hub says when."""

    def __init__(self, cause: Cause, retry_after_s: float = 0.0):
        super().__init__(cause)
        self.cause = cause
        self.retry_after_s = retry_after_s


class HubEntry(NamedTuple):
    """A file of a commit by its path; of a large one (LFS) the hub knows the SHA-256, of others ("") git's own digest.

    A mirror may know neither: then its size has to do.
    """

    path: str
    size_bytes: int
    sha256: str
    git_sha1: str


class Commit(NamedTuple):
    """What a revision is now."""

    sha: str
    entries: tuple[HubEntry, ...]


def look_up(wanted: HubRevision, timeout_s: float) -> Commit:
    """What the hub says of a revision, in one request.

    Raises:
        SourceError: It says that there is nothing, or nothing for us, or it is no hub.
        Broken: Another request may do.
    """
    with _translated(wanted.repo_id):
        try:
            info = HfApi().model_info(wanted.repo_id, revision=wanted.revision, files_metadata=True, timeout=timeout_s)
            return Commit(_given(info.sha), tuple(map(_entry, _given(info.siblings))))
        except (KeyError, TypeError) as error:  # JSON of somebody else
            raise _no_hub(wanted.repo_id, error) from error


def _entry(said: RepoSibling) -> HubEntry:
    sha256 = said.lfs.sha256 if said.lfs else ""
    return HubEntry(said.rfilename, _given(said.size), sha256, said.blob_id or "")


def _given(value: _T | None) -> _T:
    if value is None:
        raise TypeError("a part of the answer is missing")
    return value


def read_range(repo_id: str, commit: str, name: str, start: int, end: int, options: SourceOptions) -> Iterator[bytes]:
    """Bytes `[start, end)` of a file as far as one answer gives them.

    Raises:
        SourceError: The hub does not give them.
        Broken: Another request may give those that did not come.
    """
    url = hf_hub_url(repo_id, name, revision=commit)
    # The last byte is inclusive: HTTP is spoken here.
    asked = {"Accept-Encoding": "identity", "Range": f"bytes={start}-{end - 1}"}
    timeout = httpx2.Timeout(options.read_timeout_s, connect=options.connect_timeout_s)
    with (
        _translated(repo_id),
        get_session().stream("GET", url, headers={**build_hf_headers(), **asked}, timeout=timeout) as answer,
    ):
        hf_raise_for_status(answer)
        at = _first_byte(answer)
        if at > start:
            raise Broken(Cause.WRONG_RANGE)
        for piece in answer.iter_bytes():
            wanted = piece[max(start - at, 0) : end - at]
            at += len(piece)
            if wanted:
                yield wanted
            if at >= end:
                return
    raise Broken(Cause.TRUNCATED)


def _first_byte(answer: httpx2.Response) -> int:
    """Where the answer begins: a server may give the whole file instead of a range."""
    if answer.status_code != _PARTIAL_CONTENT:
        return 0
    found = _CONTENT_RANGE.match(answer.headers.get("Content-Range", ""))
    if found is None:
        raise Broken(Cause.WRONG_RANGE)
    return int(found[1])


@contextmanager
def _translated(repo_id: str) -> Iterator[None]:
    """What the client raises as ours, or as `Broken` where another attempt may do."""
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
        raise Broken(cause) from error
    except (httpx2.HTTPError, httpx2.InvalidURL, json.JSONDecodeError, UnicodeError) as error:
        raise _no_hub(repo_id, error) from error


def _no_hub(repo_id: str, error: Exception) -> SourceUnavailable:
    return SourceUnavailable(
        f"{SCHEME}{repo_id}: {ENDPOINT} does not answer as the hub does ({type(error).__name__}): "
        "check HF_ENDPOINT, HF_TOKEN and proxies"
    )


def _refusal(repo_id: str, error: HfHubHTTPError) -> Exception:
    """What a status of 400 or more means."""
    status = error.response.status_code
    what = f"{SCHEME}{repo_id}"
    page = f"{ENDPOINT}/{repo_id}"
    if isinstance(error, GatedRepoError):
        return AccessDenied(f"{what}: gated: accept its licence at {page} and set HF_TOKEN", status=status)
    if isinstance(error, RevisionNotFoundError):
        return BlobNotFound(f"{what}: no such branch, tag or commit: check --revision", status=status)
    if isinstance(error, RemoteEntryNotFoundError):
        return BlobNotFound(f"{what}: a file of its list is not there: push again", status=status)
    if isinstance(error, RepositoryNotFoundError):
        return BlobNotFound(
            f"{what}: no such repository at {ENDPOINT} (and no folder of that name here), or a private one: check the name, "
            "or set HF_TOKEN",
            status=status,
        )
    if status in _DENIED:
        return AccessDenied(
            f"{what}: access denied ({status}): set HF_TOKEN to a token that may read it, and accept its licence at {page}",
            status=status,
        )
    if cause := TRANSIENT_STATUSES.get(status):
        return Broken(cause, _retry_after_s(error.response))
    return SourceUnavailable(f"{what}: {ENDPOINT} answered {status}: check HF_ENDPOINT", status=status)


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
    return cause_of_exception(error, Cause.CONNECT if isinstance(error, httpx2.ConnectError) else Cause.RESET)
