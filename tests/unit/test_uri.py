"""streaming.uri: every form of URI that is accepted, and the refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from streaming.errors import SourceError
from streaming.options import AzureOptions
from streaming.uri import AzureLocation, FileLocation, HttpLocation, S3Location, parse

SAS_URL = "https://acct.blob.core.windows.net/?sv=2024-11-04&sig=secret"
ACCOUNT = AzureOptions(account_name="acct")


@pytest.mark.parametrize(
    ("uri", "location"),
    [
        ("az://c/p/q", AzureLocation("acct", "https://acct.blob.core.windows.net", "c", "p/q")),
        ("az://c", AzureLocation("acct", "https://acct.blob.core.windows.net", "c", "")),
        (
            "https://other.blob.core.windows.net/c/p/",
            AzureLocation("other", "https://other.blob.core.windows.net", "c", "p"),
        ),
        (
            "https://other.blob.core.usgovcloudapi.net/c/p",
            AzureLocation("other", "https://other.blob.core.usgovcloudapi.net", "c", "p"),
        ),
        ("s3://b/p", S3Location("b", "p")),
        ("http://host:8080/x/y/", HttpLocation("http://host:8080/x/y")),
        ("https://host/x", HttpLocation("https://host/x")),
        ("file:///a/b", FileLocation(Path("/a/b"))),
        ("/a/b", FileLocation(Path("/a/b"))),
    ],
)
def test_accepted_forms(uri, location):
    """Each documented form names its store, container and prefix."""
    assert parse(uri, ACCOUNT) == location


def test_a_relative_path_is_taken_from_the_working_directory(tmp_path, monkeypatch):
    """A plain path needs no scheme."""
    monkeypatch.chdir(tmp_path)
    assert parse("models/x", AzureOptions()) == FileLocation(tmp_path / "models" / "x")


@pytest.mark.parametrize(
    ("options", "name", "url"),
    [
        (AzureOptions(account_name="a", endpoint_suffix="blob.localhost:1"), "a", "https://a.blob.localhost:1"),
        (AzureOptions(endpoint="http://127.0.0.1:1/dev/"), "dev", "http://127.0.0.1:1/dev"),
        (AzureOptions(endpoint="https://acct.privatelink.example"), "acct", "https://acct.privatelink.example"),
        (
            AzureOptions(connection_string="AccountName=a;AccountKey=a2V5;EndpointSuffix=core.windows.net"),
            "a",
            "https://a.blob.core.windows.net",
        ),
        (
            AzureOptions(connection_string="UseDevelopmentStorage=true"),
            "devstoreaccount1",
            "http://127.0.0.1:10000/devstoreaccount1",
        ),
    ],
)
def test_accounts(options, name, url):
    """Account and endpoint come from names, suffixes, endpoints or a connection string."""
    location = parse("az://c/p", options)
    assert (location.account_name, location.account_url) == (name, url)


@pytest.mark.parametrize(
    ("uri", "options", "message"),
    [
        ("az://c/p", AzureOptions(), "AZURE_STORAGE_ACCOUNT_NAME"),
        ("az:///p", ACCOUNT, "no container"),
        ("https://acct.blob.core.windows.net/", ACCOUNT, "no container"),
        ("https://acct.blob.core.windows.net/c?sig=secret", ACCOUNT, "AZURE_STORAGE_SAS_TOKEN"),
        ("http://host/x?sig=secret", ACCOUNT, "without a query"),
        ("https://me:secret@host/x", ACCOUNT, "^https://host: the URL names a user"),
        ("gs://b/p", ACCOUNT, "unknown scheme 'gs'"),
        ("az://c/p", AzureOptions(connection_string="secret"), "not of the form"),
        ("az://c/p", AzureOptions(connection_string=f"BlobEndpoint={SAS_URL}"), "into SharedAccessSignature$"),
        ("az://c/p", AzureOptions(account_name="acct", connection_string=f"BlobEndpoint={SAS_URL}"), "has a query"),
        ("az://c/p", AzureOptions(endpoint=SAS_URL), "AZURE_STORAGE_SAS_TOKEN"),
        ("az://c/p", AzureOptions(endpoint="https://me:secret@acct.blob.example"), "or a user: end it before"),
    ],
)
def test_refused_forms(uri, options, message):
    """A URI that cannot be meant is refused in one line without a secret in it."""
    with pytest.raises(SourceError, match=message) as caught:
        parse(uri, options)
    assert "secret" not in str(caught.value)
