"""obstore's store of a location, with our timeouts and the credential that was chosen.

Takes a location and options, gives a store that repeats nothing by itself. Knows no read.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from obstore.store import AzureStore, HTTPStore, LocalStore, S3Store

from streaming import credentials
from streaming.errors import BlobNotFound, SourceError
from streaming.options import SourceOptions
from streaming.process import hide_variables
from streaming.uri import AzureLocation, FileLocation, HttpLocation, Location, S3Location


def open_store(location: Location, options: SourceOptions) -> Any:
    """The store, not yet spoken to (but for tokens).

    Raises:
        SourceError: No credential is found, or the folder is not there.
    """
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
