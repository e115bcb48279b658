"""Ranged reads of one prefix of a blob store: the only file that knows obstore.

Takes a location and options, gives bytes pinned to the version that was described. Knows no checkpoint
format and no thread: a `Source` may be used from any number of them, and from any event loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import obstore
from obstore import exceptions as obstore_errors
from obstore.store import AzureStore, HTTPStore, LocalStore, S3Store

from streaming import causes, credentials
from streaming.causes import Cause
from streaming.errors import (
    AccessDenied,
    BlobChanged,
    BlobNotFound,
    RangesIgnored,
    SourceError,
    SourceStalled,
    SourceUnavailable,
    StreamingError,
)
from streaming.messages import BlobVersion
from streaming.options import AzureOptions, SourceOptions
from streaming.process import hide_variables
from streaming.uri import AzureLocation, FileLocation, HttpLocation, Location, S3Location, parse

if TYPE_CHECKING:
    from obstore import Bytes, GetOptions

# What a role assignment that has not spread yet looks like, to an identity.
_NO_ROLE = "AuthorizationPermissionMismatch"
# What obstore says of a request that was not the store's own.
_OF_TOKEN = ("Error performing token request", "Error getting token response body")


@dataclass(frozen=True)
class Prefix:
    """The first bytes of a blob, and which version of it they are of."""

    data: Bytes
    version: BlobVersion


class Source:
    """One prefix of a store, open for reading; every read is one request, which nobody repeats here.

    Args:
        location: Where it is.
        store: obstore's store of it.
        identity: The credential's name and options where it is an identity: it needs tokens, and its roles take a while to spread.
    """

    def __init__(self, location: Location, store: Any, *, identity: tuple[str, AzureOptions] | None = None):
        self.location = location
        self._store = store
        self._identity = identity
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
        return isinstance(self.location, FileLocation) or causes.status_of(str(error)) == 416

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
                f"instead of {end - start}",
                cause=Cause.TRUNCATED,
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
            raise self._missing(name, str(error)) from error
        except obstore_errors.PreconditionError as error:
            raise self._changed(name) from error
        except (obstore_errors.PermissionDeniedError, obstore_errors.UnauthenticatedError) as error:
            raise self._denied(name, str(error)) from error
        except (obstore_errors.BaseError, OSError, ValueError) as error:
            where = name if start is None else f"{name} [{start}, {end})"
            raise self._by_words(name, where, error) from error

    def _by_words(self, name: str, where: str, error: Exception) -> SourceError:
        """What obstore has no class for, told by the words of its message."""
        text = str(error)
        if self._identity is not None and any(words in text for words in _OF_TOKEN):
            return self._without_token(*self._identity, text)
        match causes.status_of(text):
            case 401 | 403:
                return self._denied(name, text)
            case 404:
                return self._missing(name, text)
            case 416 if where != name:  # what was described has shrunk
                return self._changed(name)
        if isinstance(error, obstore_errors.NotSupportedError):
            return RangesIgnored(
                f"{self.location}/{where}: the source answered with the whole blob instead of the range: serve it from "
                "where byte ranges are supported (206, Accept-Ranges)"
            )
        cause = causes.cause_of(text)
        kind = SourceStalled if cause is Cause.TIMEOUT else SourceUnavailable
        return kind(f"{self.location}/{where}: {causes.on_one_line(text)}{_request(text)}", **_facts(text, cause))

    def _missing(self, name: str, text: str) -> BlobNotFound:
        return BlobNotFound(
            f"{self.location}/{name}: not found: check account, container and prefix{_request(text)}", **_facts(text)
        )

    def _denied(self, name: str, text: str) -> AccessDenied:
        said = causes.said(text)
        because = f" ({said})" if said else ""
        awaits_role = self._identity is not None and _NO_ROLE in said
        return AccessDenied(
            f"{self.location}/{name}: access denied{because}: the credential needs {self._needs()}{_request(text)}",
            said,
            **_facts(text, Cause.ROLE if awaits_role else None),
        )

    def _needs(self) -> str:
        if not isinstance(self.location, AzureLocation):
            return "read access"
        role = "the role Storage Blob Data Reader"
        return (
            f"{role}, or a SAS token with r and l"
            if self._identity is None
            else f"{role}, which counts minutes after it was assigned"
        )

    @staticmethod
    def _without_token(name: str, azure: AzureOptions, text: str) -> SourceError:
        from streaming.token_errors import TokenAnswer, token_error

        answer = TokenAnswer(
            status=causes.status_of(text),
            code=causes.code_of(text),
            cause=causes.cause_of(text),
            detail=causes.detail_of(text),
            is_untrusted=causes.is_untrusted(text),
        )
        return token_error(name, azure, answer)


def _facts(text: str, cause: Cause | None = None) -> dict[str, Any]:
    return {"cause": cause, "status": causes.status_of(text), "request_id": causes.request_id_of(text)}


def _request(text: str) -> str:
    request_id = causes.request_id_of(text)
    return f" (request id {request_id})" if request_id else ""


def _version(name: str, meta: Any) -> BlobVersion:
    return BlobVersion(name, meta["size"], meta.get("e_tag"), meta["last_modified"].timestamp())


def open_source(uri: str, options: SourceOptions) -> Source:
    """The source that `uri` names, not yet spoken to (but for tokens).

    Raises:
        SourceError: The URI cannot be meant, or no credential is found.
    """
    try:
        location = parse(uri, options.azure)
        identity = credentials.identity_of(options.azure) if isinstance(location, AzureLocation) else None
        return Source(location, _open_store(location, options), identity=identity)
    except (obstore_errors.BaseError, ValueError) as error:
        raise SourceError(
            f"{uri.partition('?')[0]}: the source cannot be opened: {causes.on_one_line(str(error))}"
        ) from error


def _open_store(location: Location, options: SourceOptions) -> Any:
    client: Any = {
        "allow_http": True,
        "connect_timeout": timedelta(seconds=options.connect_timeout_s),
        "read_timeout": timedelta(seconds=options.read_timeout_s),
        "timeout": timedelta(seconds=options.request_timeout_s),
    }
    # Of a request obstore would repeat, nobody could count the attempts, nor know their causes.
    retry: Any = {"max_retries": 0}
    match location:
        case AzureLocation():
            # obstore reads them by itself, and would sign with a key there rather than ask for the identity that was chosen.
            # azure-identity, which needs some, reads Python's.
            hide_variables("AZURE_")
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
