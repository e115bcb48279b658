"""What a cached blob is called: its address, version and size, and the folder's name that follows from them.

Pure. A query, a user and a credential are no part of an address.
"""

from __future__ import annotations

import hashlib
from urllib.parse import urlsplit, urlunsplit

import msgspec

from streaming.messages import BlobVersion
from streaming.uri import AzureLocation, FileLocation, HttpLocation, Location


class BlobKey(msgspec.Struct, frozen=True, kw_only=True):
    """One version of one blob; written beside its bytes, so that a person can see what they are."""

    uri: str
    etag: str
    size_bytes: int

    @property
    def digest(self) -> bytes:
        """32 bytes that no other version shares."""
        return hashlib.sha256("\n".join((self.uri, self.etag, str(self.size_bytes))).encode()).digest()

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return self.digest.hex()


def key_of(location: Location, version: BlobVersion) -> BlobKey | None:
    """The key of a blob under `location`; None where no strong ETag tells its versions apart."""
    if version.etag is None or not version.is_pinned:
        return None
    return BlobKey(uri=f"{_base(location)}/{version.name}", etag=version.etag, size_bytes=version.size_bytes)


def _base(location: Location) -> str:
    match location:
        case AzureLocation(account_url=url, container=container, prefix=prefix):
            return "/".join(filter(None, (_public(url), container, prefix)))
        case HttpLocation(base_url=url):
            return _public(url)
        case FileLocation(folder):
            return f"file://{folder}"
    return str(location)


def _public(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
