"""Ranged reads of one prefix of a blob store: the only file that knows obstore.

Takes a location and options, gives bytes pinned to the version that was described. Knows no checkpoint
format and no thread: a `Source` may be used from any number of them, and from any event loop.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import obstore
from obstore import exceptions as obstore_errors
from obstore.store import AzureStore, HTTPStore, LocalStore, S3Store

from streaming import credentials
from streaming.errors import (
    AccessDenied,
    BlobChanged,
    BlobNotFound,
    SourceError,
    SourceStalled,
    SourceUnavailable,
    StreamingError,
)
from streaming.messages import BlobVersion
from streaming.options import SourceOptions
from streaming.uri import AzureLocation, FileLocation, HttpLocation, Location, S3Location, parse

if TYPE_CHECKING:
    from obstore import Bytes, GetOptions

_QUERY = re.compile(r"\?[^\s\"'<>)]+")
# Only what obstore says of the status: a bare number may be a part of the URL.
_STATUS = re.compile(r"status code: (\d{3})")
# The service's own word for a refusal: Blob storage's in XML, Entra's (of a token) in JSON.
_CODE = re.compile(r"<Code>(\w+)</Code>|(AADSTS\d+)")
# What the operating system or the resolver said, deep in obstore's debug text.
_DETAIL = re.compile(r'(?:message|error): "([^"]+)"')
_TIMED_OUT = re.compile(r"kind: Timeout|TimedOut")
_BODY = re.compile(r"\s*:?\s*<\?xml.*", re.DOTALL)
_CAUSE_LENGTH = 300


@dataclass(frozen=True)
class Prefix:
    """The first bytes of a blob, and which version of it they are of."""

    data: Bytes
    version: BlobVersion


class Source:
    """One prefix of a store, open for reading."""

    def __init__(self, location: Location, store: Any):
        self.location = location
        self._store = store
        self._base = location.base_url if isinstance(location, HttpLocation) else None

    def list(self) -> dict[str, int] | None:
        """Sizes in bytes by name of the blobs directly under the prefix; None where no listing exists.

        Raises:
            SourceError: The listing failed.
        """
        if self._base is not None:
            return None
        with self._translated("listing"):
            result = obstore.list_with_delimiter(self._store)
            return {item["path"].rpartition("/")[2]: item["size"] for item in result["objects"]}

    def read(self, name: str) -> Bytes:
        """A whole small blob.

        Raises:
            BlobNotFound: There is none of this name.
            SourceError: It could not be read.
        """
        with self._translated(name):
            return obstore.get(self._store, name).bytes()

    def read_prefix(self, name: str, nbytes: int) -> Prefix:
        """The first `nbytes` (fewer if the blob is shorter), the blob's size and its ETag, in one GET.

        Raises:
            BlobNotFound: There is none of this name.
            SourceError: It could not be read.
        """
        with self._translated(name):
            try:
                result = obstore.get(self._store, name, options={"range": (0, nbytes)})
            except obstore_errors.BaseError as error:
                # No range of an empty blob can be satisfied.
                if not self._may_be_empty(error) or obstore.head(self._store, name)["size"] > 0:
                    raise
                result = obstore.get(self._store, name)
            meta = result.meta
            return Prefix(result.bytes(), _version(name, meta))

    def _may_be_empty(self, error: Exception) -> bool:
        return isinstance(self.location, FileLocation) or _status(error) == "416"

    async def read_range(self, version: BlobVersion, start: int, end: int) -> Bytes:
        """Bytes `[start, end)` of exactly this version of the blob, joined by obstore's own threads.

        Not by the caller's: it would be woken for every 16 KiB that TLS decrypts, at twice the processor time.
        A strong ETag is sent as If-Match, so the service refuses a changed blob; where it is weak or
        absent (If-Match never matches a weak one), what the answer says of its version is compared.

        Raises:
            BlobChanged: The blob is not the one that was described.
            SourceError: It could not be read.
        """
        with self._translated(version.name, start, end):
            options: GetOptions = {"range": (start, end)}
            if version.etag is not None and version.is_pinned:
                options["if_match"] = version.etag
            result = await obstore.get_async(self._store, version.name, options=options)
            self._check_version(version, result.meta)
            data = await result.bytes_async()
        if len(data) != end - start:
            raise SourceUnavailable(
                f"{self.location}/{version.name} [{start}, {end}): the source answered with {len(data)} bytes "
                f"instead of {end - start}"
            )
        return data

    def _check_version(self, version: BlobVersion, meta: Any) -> None:
        found = _version(version.name, meta)
        # Where an ETag decides, the date need not agree: replicas of a web server may each have their own.
        if (found.size_bytes, found.etag) != (version.size_bytes, version.etag) or (
            not version.is_pinned and found != version
        ):
            raise self._changed(version.name)

    def _changed(self, name: str) -> BlobChanged:
        return BlobChanged(
            f"{self.location}/{name} was overwritten during the load: start again to read the new version"
        )

    @contextmanager
    def _translated(self, name: str, start: int | None = None, end: int | None = None) -> Iterator[None]:
        """Obstore's errors as ours, named after what was read; one table, no secret."""
        try:
            yield
        except StreamingError:
            raise
        except FileNotFoundError as error:
            raise self._missing(name) from error
        except obstore_errors.PreconditionError as error:
            raise self._changed(name) from error
        except (obstore_errors.PermissionDeniedError, obstore_errors.UnauthenticatedError) as error:
            raise self._denied(name, error) from error
        except (obstore_errors.BaseError, OSError, ValueError) as error:
            where = name if start is None else f"{name} [{start}, {end})"
            raise self._by_status(name, where, error) from error

    def _by_status(self, name: str, where: str, error: Exception) -> SourceError:
        """What obstore has no class for, told by the status that its message quotes."""
        if "token request" in str(error) and (_status(error) or "").startswith("4"):
            return self._without_token(error)
        match _status(error):
            case "401" | "403":
                return self._denied(name, error)
            case "404":
                return self._missing(name)
        kind = SourceStalled if _TIMED_OUT.search(str(error)) else SourceUnavailable
        return kind(f"{self.location}/{where}: {_cause(error)}")

    def _missing(self, name: str) -> BlobNotFound:
        return BlobNotFound(f"{self.location}/{name}: not found: check account, container and prefix")

    def _denied(self, name: str, error: Exception) -> AccessDenied:
        azure = isinstance(self.location, AzureLocation)
        needs = "the role Storage Blob Data Reader, or a SAS token with r and l" if azure else "read access"
        said = _said(error)
        because = f" ({said})" if said else ""
        return AccessDenied(f"{self.location}/{name}: access denied{because}: the credential needs {needs}", said)

    def _without_token(self, error: Exception) -> AccessDenied:
        said = _said(error)
        return AccessDenied(
            f"{self.location}: the identity got no token ({said}): check that AZURE_CLIENT_ID and AZURE_TENANT_ID are "
            "its own, and that its federated credential names this cluster's issuer and this service account",
            said,
        )


def _status(error: Exception) -> str | None:
    found = _STATUS.search(str(error))
    return found[1] if found else None


def _said(error: Exception) -> str:
    """Status and code of a refusal, as far as the answer had them."""
    code = _CODE.search(str(error))
    return " ".join(filter(None, (_status(error), code and (code[1] or code[2]))))


def _version(name: str, meta: Any) -> BlobVersion:
    return BlobVersion(name, meta["size"], meta.get("e_tag"), meta["last_modified"].timestamp())


def open_source(uri: str, options: SourceOptions) -> Source:
    """The source that `uri` names, not yet spoken to (but for tokens).

    Raises:
        SourceError: The URI cannot be meant, or no credential is found.
    """
    try:
        location = parse(uri, options.azure)
        return Source(location, _open_store(location, options))
    except (obstore_errors.BaseError, ValueError) as error:
        raise SourceError(f"{uri.partition('?')[0]}: the source cannot be opened: {_cause(error)}") from error


def _open_store(location: Location, options: SourceOptions) -> Any:
    client: Any = {
        "allow_http": True,
        "connect_timeout": timedelta(seconds=options.connect_timeout_s),
        "timeout": timedelta(seconds=options.request_timeout_s),
    }
    retry: Any = {
        "max_retries": options.max_retries,
        "retry_timeout": timedelta(seconds=options.retry_timeout_s),
        "backoff": {
            "init_backoff": timedelta(milliseconds=100),
            "max_backoff": timedelta(seconds=2),
            "base": 2,
        },
    }
    match location:
        case AzureLocation():
            return AzureStore(
                location.container,
                prefix=location.prefix or None,
                account_name=location.account_name,
                endpoint=location.account_url,
                client_options=client,
                retry_config=retry,
                **credentials.store_arguments(options.azure),
            )
        case S3Location():
            return S3Store(location.bucket, prefix=location.prefix or None, client_options=client, retry_config=retry)
        case HttpLocation():
            return HTTPStore.from_url(location.base_url, client_options=client, retry_config=retry)
        case FileLocation(folder):
            if not folder.is_dir():
                raise BlobNotFound(f"{location}: no such folder: check the path and the volume's mount")
            return LocalStore(folder)
    raise SourceError(f"{location}: no store for it")


def _cause(error: Exception) -> str:
    """The message on one line, without XML bodies and without query strings (they carry SAS tokens)."""
    text, _, debug = str(error).partition("\n\nDebug source")
    text = " ".join(_BODY.sub("", text).split())
    details = [detail for detail in _DETAIL.findall(debug) if detail not in text]
    return _QUERY.sub("?...", ": ".join([text[:_CAUSE_LENGTH], *details[-1:]]))
