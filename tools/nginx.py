"""Nginx over a folder, with what a Blob service has: a server that keeps up with a GPU's loader, for benchmarks.

Takes a folder, gives a plain and a TLS port. `http(s)://HOST/PATH` serves ranges with strong ETags;
`x-ms-range` counts like Range and answers carry Blob's headers, so Azure's clients work against the same
ports (anonymously or with any SAS token: nobody checks it). Brings nginx along where the machine has none
(`tools.nginx_binary`). Knows no checkpoint; lists nothing. By hand: `python -m tools.nginx ROOT STATE_DIR`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.child import last_line, running
from tools.nginx_binary import NginxError, Programs, ensure_programs
from tools.ports import free_port

# The account that stands in the path where a client knows no host names of accounts.
ACCOUNT_NAME = "coldstream"
SYSTEM_CA_FILE = Path("/etc/ssl/certs/ca-certificates.crt")
_START_TIMEOUT_S = 10.0

_CONFIGURATION = """\
load_module {headers_more};
{user}
daemon off;
worker_processes {workers};
worker_rlimit_nofile 65536;
pid {state_dir}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 4096; multi_accept on; }}
http {{
  access_log off;
  client_body_temp_path {state_dir}/body;
  proxy_temp_path {state_dir}/proxy;
  fastcgi_temp_path {state_dir}/fastcgi;
  uwsgi_temp_path {state_dir}/uwsgi;
  scgi_temp_path {state_dir}/scgi;
  default_type application/octet-stream;
  keepalive_requests 1000000;
  tcp_nopush on;
  # One connection must not hold a worker while others wait.
  sendfile_max_chunk 4m;

  map $http_x_ms_range $asked_range {{ "" $http_range; default $http_x_ms_range; }}
  more_set_input_headers "Range: $asked_range";
  add_header x-ms-blob-type BlockBlob;
  add_header x-ms-request-id 00000000-0000-0000-0000-000000000000;
  add_header x-ms-version 2021-08-06;
  add_header x-ms-server-encrypted true;
  add_header x-ms-lease-status unlocked;
  add_header x-ms-lease-state available;
  add_header x-ms-creation-time "Mon, 01 Jan 2024 00:00:00 GMT";

  root {root};
  server {{
    listen 127.0.0.1:{plain_port} reuseport;
    rewrite ^/{account}/(.*)$ /$1;
    sendfile on;
  }}
  server {{
    listen 127.0.0.1:{tls_port} ssl reuseport;
    rewrite ^/{account}/(.*)$ /$1;
    ssl_certificate {state_dir}/server.pem;
    ssl_certificate_key {state_dir}/server.key;
    # What is encrypted passes through memory, in large pieces.
    sendfile off;
    output_buffers 4 1m;
  }}
}}
"""

# Its own file, so that no system-wide one is needed or heeded.
_CERTIFICATES = """\
[req]
distinguished_name = name
prompt = no
[name]
CN = Coldstream benchmark
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
extendedKeyUsage = serverAuth
subjectAltName = DNS:localhost, DNS:*.blob.localhost, IP:127.0.0.1
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


@dataclass(frozen=True)
class Nginx:
    """A running server and the files that make a client trust it.

    `ca_file` holds its own authority alone, `bundle_file` the system's and its own.
    """

    plain_port: int
    tls_port: int
    ca_file: Path
    bundle_file: Path

    @property
    def plain_url(self) -> str:
        """The root over HTTP, without a closing slash."""
        return f"http://127.0.0.1:{self.plain_port}"

    @property
    def tls_url(self) -> str:
        """The root over HTTPS, without a closing slash."""
        return f"https://localhost:{self.tls_port}"

    @property
    def azure_plain_url(self) -> str:
        """The account's URL over HTTP, as azure-storage-blob takes it; a container is a folder of the root."""
        return f"{self.plain_url}/{ACCOUNT_NAME}"

    def azure_environment(self) -> dict[str, str]:
        """The variables with which `az://CONTAINER/...` means this server over TLS."""
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT_NAME,
            "AZURE_STORAGE_ENDPOINT_SUFFIX": f"blob.localhost:{self.tls_port}",
            "AZURE_STORAGE_SAS_TOKEN": "sv=2021-08-06&sig=AAAA",
        }


@contextlib.contextmanager
def nginx(root: Path, *, workers: int, state_dir: Path) -> Iterator[Nginx]:
    """Serve `root` on two free ports of the loopback address for the length of a `with` block.

    Args:
        root: What to serve.
        workers: How many processes answer.
        state_dir: Where certificates, configuration and log go; made if missing.

    Raises:
        NginxError: There is no nginx and none can be had, or it did not come up.
    """
    programs = ensure_programs()
    state_dir = state_dir.resolve()
    state_dir.mkdir(parents=True, exist_ok=True)
    _make_certificates(programs, state_dir)
    server = Nginx(free_port(), free_port(), state_dir / "ca.pem", state_dir / "bundle.pem")
    configuration = state_dir / "nginx.conf"
    configuration.write_text(configuration_text(programs, server, root.resolve(), workers, state_dir))
    command = [*programs.command(programs.nginx), "-c", str(configuration), "-p", str(state_dir), "-e", "stderr"]
    log_path = state_dir / "nginx.log"
    with running(command, log_path=log_path) as process:
        for port in (server.plain_port, server.tls_port):
            _wait_until_listening(process, port, log_path)
        yield server


def configuration_text(programs: Programs, server: Nginx, root: Path, workers: int, state_dir: Path) -> str:
    """The nginx.conf of this server."""
    return _CONFIGURATION.format(
        headers_more=programs.headers_more,
        # Root's own files are read, too; anybody else's workers cannot change their user.
        user="user root;" if os.geteuid() == 0 else "",
        workers=workers,
        state_dir=state_dir,
        root=root,
        account=ACCOUNT_NAME,
        plain_port=server.plain_port,
        tls_port=server.tls_port,
    )


def _make_certificates(programs: Programs, state_dir: Path) -> None:
    """An authority and the server's certificate by it; the bundle has the system's authorities as well."""
    recipe = state_dir / "certificates.cnf"
    recipe.write_text(_CERTIFICATES)
    request = [*programs.command(programs.openssl), "req", "-x509", "-config", str(recipe), "-days", "30", "-noenc"]
    request += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    authority = ["-extensions", "authority", "-keyout", "ca.key", "-out", "ca.pem"]
    issued = ["-CA", "ca.pem", "-CAkey", "ca.key", "-subj", "/CN=localhost"]
    for part in (authority, [*issued, "-extensions", "server", "-keyout", "server.key", "-out", "server.pem"]):
        done = subprocess.run([*request, *part], cwd=state_dir, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NginxError(f"openssl made no certificate: {' '.join(done.stderr.split())[-300:]}")
    system = SYSTEM_CA_FILE.read_text() if SYSTEM_CA_FILE.is_file() else ""
    (state_dir / "bundle.pem").write_text(system + (state_dir / "ca.pem").read_text())


def _wait_until_listening(process: subprocess.Popen[bytes], port: int, log_path: Path) -> None:
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if process.poll() is not None:
            break
        time.sleep(0.01)
    raise NginxError(f"nginx did not start: {last_line(log_path)}")


def main() -> int:
    """Serve a folder until it is interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("state_dir", type=Path)
    parser.add_argument("--workers", type=int, default=4)
    arguments = parser.parse_args()
    try:
        with (
            contextlib.suppress(KeyboardInterrupt),
            nginx(arguments.root, workers=arguments.workers, state_dir=arguments.state_dir) as server,
        ):
            print(f"{server.plain_url}\n{server.tls_url} (trust {server.ca_file})", flush=True)
            while True:
                time.sleep(3600)
    except NginxError as error:
        print(f"nginx: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
