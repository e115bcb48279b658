"""URIs to locations: which store, which container, which prefix.

Takes a URI and the Azure options, gives a `Location`; opens nothing and knows no credential.

    az://container/prefix                                   account from the options
    https://account.blob.core.windows.net/container/prefix  (any `.blob.` host of an Azure cloud)
    file:///dir, /dir, dir · http(s)://host/prefix · s3://bucket/prefix
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from streaming.errors import SourceError
from streaming.options import AzureOptions

# The public key and name of the emulator's account, as Microsoft documents them.
_EMULATOR = {
    "AccountName": "devstoreaccount1",
    "AccountKey": "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==",
    "BlobEndpoint": "http://127.0.0.1:10000/devstoreaccount1",
}


@dataclass(frozen=True)
class AzureLocation:
    """A prefix of a container; `account_url` has no trailing slash."""

    account_name: str
    account_url: str
    container: str
    prefix: str

    def __str__(self) -> str:
        return f"az://{self.container}/{self.prefix}".rstrip("/")


@dataclass(frozen=True)
class S3Location:
    """A prefix of a bucket."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")


@dataclass(frozen=True)
class HttpLocation:
    """A base URL; such a source cannot be listed."""

    base_url: str

    def __str__(self) -> str:
        return self.base_url


@dataclass(frozen=True)
class FileLocation:
    """A local folder, absolute."""

    folder: Path

    def __str__(self) -> str:
        return f"file://{self.folder}"


Location = AzureLocation | S3Location | HttpLocation | FileLocation


def parse(uri: str, azure: AzureOptions) -> Location:
    """The location that `uri` names.

    Raises:
        SourceError: The scheme is unknown, a part is missing, or `az://` has no account.
    """
    parts = urlsplit(uri)
    path = unquote(parts.path).strip("/")
    match parts.scheme:
        case "az" | "s3" if not parts.netloc:
            raise SourceError(f"{uri}: no container: write {parts.scheme}://container/prefix")
        case "az":
            name, url = account(azure)
            return AzureLocation(name, url, parts.netloc, path)
        case "s3":
            return S3Location(parts.netloc, path)
        case "http" | "https" if _is_azure_host(parts):
            return _azure_from_url(uri, parts, path)
        case "http" | "https" if "@" in parts.netloc:
            host = parts.netloc.rpartition("@")[2]
            raise SourceError(
                f"{parts.scheme}://{host}: the URL names a user: a source is read without one, so leave it out"
            )
        case "http" | "https" if parts.netloc and not parts.query:
            return HttpLocation(f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}")
        case "http" | "https":
            raise SourceError(f"{uri.partition('?')[0]}: no base URL: write one with a host and without a query")
        case "file":
            return FileLocation(Path("/" + path))
        case "":
            return FileLocation(Path(uri).resolve())
    raise SourceError(f"{uri}: unknown scheme {parts.scheme!r}: use az, https, http, s3, file or a path")


def account(azure: AzureOptions) -> tuple[str, str]:
    """The storage account's name and blob service URL, without a trailing slash.

    Raises:
        SourceError: Neither a connection string nor an account name nor an endpoint is given, or the endpoint holds
            a secret, which is not quoted.
    """
    string = parse_connection_string(azure.connection_string) if azure.connection_string else {}
    name = azure.account_name or string.get("AccountName")
    endpoint = azure.endpoint or string.get("BlobEndpoint")
    if endpoint and ("?" in endpoint or "@" in endpoint):  # a pasted SAS URL, or a user: endpoints are shown
        raise SourceError(
            "the blob endpoint has a query or a user: end it before them, and put a SAS token into "
            "AZURE_STORAGE_SAS_TOKEN or, in a connection string, into SharedAccessSignature"
        )
    if endpoint and not name:
        name = _account_of_endpoint(urlsplit(endpoint))
    if not name:
        raise SourceError(
            "az:// needs an account: set AZURE_STORAGE_ACCOUNT_NAME or AZURE_STORAGE_CONNECTION_STRING, "
            "or write https://ACCOUNT.blob.core.windows.net/CONTAINER/PREFIX"
        )
    if not endpoint:
        protocol = string.get("DefaultEndpointsProtocol", "https")
        endpoint = f"{protocol}://{name}.blob.{string['EndpointSuffix']}" if "EndpointSuffix" in string else None
    return name, (endpoint or f"https://{name}.{azure.endpoint_suffix}").rstrip("/")


def parse_connection_string(text: str) -> dict[str, str]:
    """The fields of an Azure Storage connection string, the emulator's shorthand spelled out.

    Raises:
        SourceError: A part is not `Name=value`. The text is a secret and is not quoted.
    """
    parts = [part.strip().partition("=") for part in text.split(";") if part.strip()]
    if not parts or any(not separator for _, separator, _ in parts):
        raise SourceError("the connection string is not of the form Name=value;Name=value")
    fields = {name: value for name, _, value in parts}
    return {**_EMULATOR, **fields} if fields.get("UseDevelopmentStorage") == "true" else fields


def _is_azure_host(parts: SplitResult) -> bool:
    return ".blob." in (parts.hostname or "") and not (parts.hostname or "").endswith("localhost")


def _azure_from_url(uri: str, parts: SplitResult, path: str) -> AzureLocation:
    container, _, prefix = path.partition("/")
    if not container:
        raise SourceError(f"{uri.partition('?')[0]}: no container after the account's host")
    if parts.query:
        raise SourceError("put the SAS token into AZURE_STORAGE_SAS_TOKEN, not into the URI, which is logged")
    name = (parts.hostname or "").partition(".")[0]
    return AzureLocation(name, f"{parts.scheme}://{parts.netloc}", container, prefix)


def _account_of_endpoint(endpoint: SplitResult) -> str:
    """Azurite has the account as its URL's path, Azure as its host's first label."""
    return endpoint.path.strip("/") or (endpoint.hostname or "").partition(".")[0]
