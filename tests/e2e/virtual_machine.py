"""A virtual machine of Azure in a network of its own, whose metadata service gives tokens of its identities: a push, then a server.

Run as a program in a network namespace, by `unshare --net`; prints one JSON object. Takes a checkpoint, a prompt and an empty folder.
"""

from __future__ import annotations

import fcntl
import json
import socket
import struct
import sys
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.coldstream import serving
from tests.e2e.test_refusals import coldstream
from tests.entra import STORAGE, Cluster, Entra
from tests.integration.test_preflight import http_server
from tests.private_ca import make_private_ca, send
from tools.azurite import ACCOUNT_NAME, azurite

METADATA_SERVICE = "169.254.169.254"
URI = "az://models/tiny"
USER_ASSIGNED = "client-id-of-the-machines-second-identity"
# Linux': <linux/sockios.h> and <linux/if.h>.
_SIOCSIFFLAGS, _SIOCSIFADDR, _IFF_UP = 0x8914, 0x8916, 1


def connect_loopback() -> None:
    """Bring it up, with the metadata service's address beside its own."""
    address = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(METADATA_SERVICE))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP))
        fcntl.ioctl(any_socket, _SIOCSIFADDR, struct.pack("16s16s", b"lo:metadata", address))


class MetadataService:
    """Gives tokens of the machine's identity, or of one that is named, to whoever asks as its documentation wants it."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        # The client id of each request, "" where it named none.
        self.asked: list[str] = []
        self._entra = Entra(Cluster())

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """A token, or 400."""
        address = urlsplit(handler.path)
        asked = {name: values[0] for name, values in parse_qs(address.query).items()}
        client_id = asked.get("client_id", "")
        self.asked.append(client_id)
        known = (
            address.path == "/metadata/identity/oauth2/token"
            and handler.headers.get("Metadata") == "true"
            and asked.get("api-version", "") >= "2018-02-01"
            and asked.get("resource", "").rstrip("/") == STORAGE
            and client_id in ("", USER_ASSIGNED)
        )
        if not known:
            refusal = {"error": "invalid_request", "error_description": "Identity not found"}
            send(handler, 400, json.dumps(refusal).encode(), "application/json; charset=utf-8")
            return
        self.tokens.append(self._entra.access_token(client_id or "its-own"))
        lifetime_s, now_s = int(self._entra.lifetime_s), int(time.time())
        given = {
            "access_token": self.tokens[-1],
            "client_id": client_id or "its-own",
            "expires_in": str(lifetime_s),
            "expires_on": str(now_s + lifetime_s),
            "ext_expires_in": str(lifetime_s),
            "not_before": str(now_s),
            "resource": STORAGE,
            "token_type": "Bearer",
        }
        send(handler, 200, json.dumps(given).encode(), "application/json; charset=utf-8")


def main(model: str, prompt: str, folder: str) -> None:
    """Push with the machine's own identity, serve with the other one."""
    connect_loopback()
    scratch = Path(folder)
    ca = make_private_ca(scratch)
    tls = ("--cert", str(ca.cert_file), "--key", str(ca.key_file))
    service = MetadataService()
    with (
        azurite(scratch / "storage", "--oauth", "basic", *tls) as storage,
        http_server(service.answer, (METADATA_SERVICE, 80)),
    ):
        environ = ca.trusted | {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT_NAME,
            "AZURE_STORAGE_BLOB_ENDPOINT": storage.endpoint,
            "COLDSTREAM_AZURE_CREDENTIAL": "managed-identity",
        }
        pushed = coldstream("push", model, URI, "--log-level", "debug", environ=environ)
        pushed_as, service.asked = service.asked, []
        flags = ("--device", "cpu", "--log-level", "debug")
        environ["AZURE_CLIENT_ID"] = USER_ASSIGNED
        with serving(URI, *flags, log_path=scratch / "log", environ=environ) as server:
            server.wait_ready()
            said = server.complete(json.loads(prompt), max_tokens=1)
        texts = (pushed.stdout, pushed.stderr, server.log())
        found = {
            "push": [pushed.returncode, pushed.stderr],
            "text": said["choices"][0]["text"],
            "asked": [sorted(set(pushed_as)), sorted(set(service.asked))],
            "told": [token for token in service.tokens for text in texts if token in text],
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
