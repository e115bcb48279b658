"""An authority of one's own, and HTTPS servers that it vouches for on 127.0.0.1.

Takes a folder, gives PEM files: the authority's certificate, a server's certificate and key. Knows no protocol beyond TLS.
"""

from __future__ import annotations

import ipaddress
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

HOST = "127.0.0.1"
_DAY = timedelta(days=1)


@dataclass(frozen=True)
class PrivateCa:
    """Files in PEM: who is to be trusted, and the certificate and key of every server on this machine."""

    ca_file: Path
    cert_file: Path
    key_file: Path

    @property
    def trusted(self) -> dict[str, str]:
        """The variables with which a process believes it: obstore's and Python's own, and the Azure SDK's."""
        return {"SSL_CERT_FILE": str(self.ca_file), "REQUESTS_CA_BUNDLE": str(self.ca_file)}


def make_private_ca(folder: Path) -> PrivateCa:
    """A new authority and a certificate of it for 127.0.0.1."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = _name("coldstream tests")
    ca = _unsigned(ca_name, ca_name, ca_key.public_key()).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    server = _unsigned(_name(HOST), ca_name, key.public_key()).add_extension(
        x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), critical=False
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return PrivateCa(
        _written(folder / "ca.pem", ca.sign(ca_key, hashes.SHA256()).public_bytes(Encoding.PEM)),
        _written(folder / "server.pem", server.sign(ca_key, hashes.SHA256()).public_bytes(Encoding.PEM)),
        _written(folder / "server.key", private),
    )


@contextmanager
def https_server(ca: PrivateCa, answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A server whose every request is `answer(handler)`; its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(self)

        do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    server = _Server((HOST, 0), Handler)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(ca.cert_file, ca.key_file)
    # The handshake is the connection's own thread's, which a client may leave waiting.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"https://{HOST}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, content_type: str, **headers: str) -> None:
    """A whole answer; a HEAD gets no body."""
    handler.send_response(status)
    for name, value in {"Content-Type": content_type, "Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a client that does not believe the certificate hangs up."""


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _unsigned(subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + _DAY)
    )


def _written(path: Path, pem: bytes) -> Path:
    path.write_bytes(pem)
    return path
