"""The credential that was chosen is the one that goes over the wire, whatever else the loader's environment holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

import pytest

from streaming.options import AzureOptions, SourceOptions
from tests.integration.test_preflight import http_server
from tests.loader import load

OTHERS = {
    "AZURE_STORAGE_ACCOUNT_KEY": "d3Jvbmc=",
    "AZURE_STORAGE_ACCESS_KEY": "d3Jvbmc=",
    "AZURE_STORAGE_SAS_TOKEN": "sv=1&sig=wrong",
    "AZURE_STORAGE_SAS_KEY": "sv=1&sig=wrong",
    "AZURE_STORAGE_TOKEN": "wrong",
    "AZURE_SKIP_SIGNATURE": "true",
}


@contextmanager
def services() -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """Who gives tokens and who keeps blobs, of which there are none; with the path and credential of every read."""
    reads: list[tuple[str, str | None]] = []
    token = {"access_token": "right", "expires_in": 3600, "expires_on": "4102444800", "token_type": "Bearer"}

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        is_token = urlsplit(handler.path).path.endswith("/token")
        if not is_token:
            reads.append((handler.path, handler.headers.get("Authorization")))
        body = json.dumps(token).encode()
        handler.send_response(200 if is_token else 404)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)

    with http_server(answer) as url:
        yield url, reads


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("credential", ["workload-identity", "managed-identity"])
def test_an_identity_is_used_whatever_else_is_set(tmp_path, credential, other):
    """A key, a SAS token, a client secret or another identity beside it signs nothing: its own token goes with every read."""
    path = tmp_path / "federated"
    path.write_text("of the pod")
    with services() as (url, reads):
        pod = {"federated_token_file": str(path), "authority_host": url, "client_id": "client", "tenant_id": "tenant"}
        given = pod if credential == "workload-identity" else {}
        azure = AzureOptions(account_name="account", endpoint=url, credential=credential, **given)
        unasked = {"AZURE_CLIENT_ID": "other", "AZURE_TENANT_ID": "other", "AZURE_FEDERATED_TOKEN_FILE": "/none"}
        environ = {
            other: OTHERS[other],
            **unasked,
            "AZURE_AUTHORITY_HOST": "http://127.0.0.1:9",
            "IDENTITY_ENDPOINT": f"{url}/token",
        }
        ended = load("az://models/x", source=SourceOptions(azure=azure, max_retries=0), environ=environ)
    assert ended.error.kind == "BlobNotFound", ended.error.message
    assert {sent for _, sent in reads} == {"Bearer right"}
    assert not any("sig=" in path for path, _ in reads)


def test_the_environment_names_no_other_account():
    """Nor does it move a load to an emulator, or to another endpoint."""
    with services() as (url, reads):
        azure = AzureOptions(account_name="account", endpoint=url, account_key="cmlnaHQ=")
        environ = {"AZURE_STORAGE_USE_EMULATOR": "true", "AZURE_STORAGE_ENDPOINT": "http://127.0.0.1:9"}
        ended = load("az://models/x", source=SourceOptions(azure=azure, max_retries=0), environ=environ)
    assert ended.error.kind == "BlobNotFound", ended.error.message
    assert {sent.partition(":")[0] for _, sent in reads} == {"SharedKey account"}
