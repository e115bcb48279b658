"""azure-storage-blob's client as we open it, and its errors as ours.

Takes a location and options; `upload` and `staging` use what it gives. Knows no checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ResourceModifiedError,
    ResourceNotFoundError,
)
from azure.storage.blob import ContainerClient, ExponentialRetry

from streaming.credentials import sdk_credential
from streaming.errors import AccessDenied, BlobChanged, BlobNotFound, SourceUnavailable
from streaming.exception_causes import detail_of_exception
from streaming.options import SourceOptions
from streaming.uri import AzureLocation

_FORBIDDEN = 403


def open_container(location: AzureLocation, source: SourceOptions, block_bytes: int) -> ContainerClient:
    """A client for the location's container, not yet spoken to; one request moves at most `block_bytes`.

    Raises:
        AccessDenied: A part of the credential is missing.
    """
    return ContainerClient(
        location.account_url,
        location.container,
        credential=sdk_credential(source),
        max_block_size=block_bytes,
        max_single_put_size=block_bytes,
        max_chunk_get_size=block_bytes,
        max_single_get_size=block_bytes,
        connection_timeout=source.connect_timeout_s,
        read_timeout=source.request_timeout_s,
        # The client's own default waits 15 s before its first retry.
        retry_policy=ExponentialRetry(
            initial_backoff=1, increment_base=2, retry_total=source.max_retries, random_jitter_range=1
        ),
    )


def blob_name(location: AzureLocation, name: str) -> str:
    """The name in the container of a file under the location's prefix."""
    return f"{location.prefix}/{name}".lstrip("/")


@contextmanager
def translated(location: AzureLocation, needs: str) -> Iterator[None]:
    """Turn the client's errors into ours, quoting nothing that could hold a URL's signature or a key.

    Args:
        location: What is being read or written.
        needs: Which credential it takes, for who is denied.
    """
    try:
        yield
    except ClientAuthenticationError as error:
        raise _denied(location, needs, error) from error
    except ResourceNotFoundError as error:
        raise BlobNotFound(f"{location}: not found in {location.account_url}: check account and container") from error
    except ResourceModifiedError as error:
        raise BlobChanged(f"{location} was overwritten during the load: start again to read the new version") from error
    except HttpResponseError as error:
        if error.status_code == _FORBIDDEN:
            raise _denied(location, needs, error) from error
        raise SourceUnavailable(
            f"{location}: the service answered {error.status_code} {_code(error)} after every retry"
        ) from error
    except AzureError as error:
        raise SourceUnavailable(
            f"{location}: no answer from {location.account_url}: {detail_of_exception(error) or type(error).__name__}"
        ) from error


def _denied(location: AzureLocation, needs: str, error: ClientAuthenticationError | HttpResponseError) -> AccessDenied:
    return AccessDenied(f"{location}: access denied ({_code(error)}): {needs}")


def _code(error: HttpResponseError) -> str:
    return str(getattr(error, "error_code", None) or error.reason or type(error).__name__)
