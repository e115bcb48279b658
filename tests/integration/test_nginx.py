"""The benchmarks' object store: real nginx, asked by our source and by Azure's client."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from azure.storage.blob import BlobClient

from streaming.errors import BlobChanged
from streaming.options import SourceOptions
from streaming.source import open_source
from tools.nginx import Nginx, nginx
from tools.nginx_binary import NginxError, Programs, ensure_programs
from tools.random_checkpoint import write_checkpoint

DATA = bytes(range(256)) * 4096

READ_OVER_TLS = """
import asyncio, sys
from streaming.options import SourceOptions
from streaming.source import open_source
source = open_source(sys.argv[1], SourceOptions(max_retries=0))
version = source.read_prefix("blob.bin", 8).version
sys.stdout.buffer.write(bytes(asyncio.run(source.read_range(version, 1000, 70000))))
"""


@pytest.fixture(scope="module")
def programs():
    try:
        return ensure_programs()
    except NginxError as error:
        pytest.fail(str(error))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root")
    (folder / "models").mkdir()
    (folder / "models" / "blob.bin").write_bytes(DATA)
    return folder


@pytest.fixture(scope="module")
def server(programs, root, tmp_path_factory):
    with nginx(root, workers=2, state_dir=tmp_path_factory.mktemp("state")) as running:
        yield running


def read_over_tls(server: Nginx, **environ: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", READ_OVER_TLS, f"{server.tls_url}/models"]
    return subprocess.run(command, env={**os.environ, **environ}, capture_output=True, check=False)


def test_our_source_reads_ranges_of_the_described_version(server, root):
    """Over plain HTTP, pinned by a strong ETag: a blob that changes is refused."""
    other = root / "models" / "changing.bin"
    other.write_bytes(DATA)
    source = open_source(f"{server.plain_url}/models", SourceOptions(max_retries=0))
    version = source.read_prefix("changing.bin", 8).version
    assert version.is_pinned
    assert bytes(asyncio.run(source.read_range(version, 5, 70000))) == DATA[5:70000]
    other.write_bytes(DATA + b"more")
    with pytest.raises(BlobChanged):
        asyncio.run(source.read_range(version, 5, 70000))


def test_our_source_reads_over_tls_once_the_bundle_is_trusted(server):
    """SSL_CERT_FILE is heeded; without it the certificate is refused."""
    assert read_over_tls(server, SSL_CERT_FILE=str(server.bundle_file)).stdout == DATA[1000:70000]
    refused = read_over_tls(server)
    assert refused.returncode
    assert b"SourceUnavailable" in refused.stderr


def test_the_bundle_also_holds_what_the_system_trusts(server):
    own = server.ca_file.read_text()
    assert server.bundle_file.read_text().endswith(own)
    system = Path("/etc/ssl/certs/ca-certificates.crt")
    assert not system.is_file() or server.bundle_file.read_text().startswith(system.read_text())


def test_azures_client_reads_in_parallel(server):
    """Blob's own range header counts, so several reads make one right file."""
    url = server.azure_plain_url
    with BlobClient(url, "models", "blob.bin", max_single_get_size=65536, max_chunk_get_size=65536) as blob:
        assert blob.download_blob(max_concurrency=4).readall() == DATA
        assert blob.download_blob(offset=7, length=1000).readall() == DATA[7:1007]


def test_blobs_range_header_wins_and_is_answered_with_blobs_headers(server):
    headers = {"Range": "bytes=0-9", "x-ms-range": "bytes=100-104"}
    with httpx.Client(verify=ssl.create_default_context(cafile=server.ca_file)) as client:
        for base in (server.plain_url, server.tls_url):
            answer = client.get(f"{base}/models/blob.bin", headers=headers)
            assert (answer.status_code, answer.content) == (206, DATA[100:105])
            assert answer.headers["content-range"] == f"bytes 100-104/{len(DATA)}"
            assert answer.headers["x-ms-blob-type"] == "BlockBlob"
            assert not answer.headers["etag"].startswith("W/")


def test_a_benchmark_run_is_gone_on_with_and_reported(programs, tmp_path):
    """A whole run of ours over TLS on the CPU; the second run finds its only start made and repeats the report."""
    # Its own is made by a process that imports transformers, which this one has done.
    write_checkpoint(tmp_path / "served" / "models" / "tiny", "tiny")
    command = [sys.executable, "-m", "bench.gpu.cold_start", "--results", str(tmp_path / "results.json")]
    command += ["--shape", "tiny", "--device", "cpu", "--rounds", "1", "--slow-rounds", "1", "--no-warm-up"]
    command += ["--only", "coldstream, HTTPS", "--chart", str(tmp_path / "chart.png")]
    command += [f"--{name}-dir={tmp_path / name}" for name in ("served", "disk", "log")]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=False) for _ in range(2))
    assert (first.returncode, second.returncode) == (0, 0), first.stdout + first.stderr
    assert "round 0: coldstream, HTTPS" in first.stdout
    assert "round 0: coldstream, HTTPS" not in second.stdout
    assert first.stdout.splitlines()[-1] == second.stdout.splitlines()[-1]
    summary = json.loads(second.stdout.splitlines()[-1])
    assert summary["complete"]
    assert summary["figures"]["coldstream, HTTPS"]["n"] == 1
    assert (tmp_path / "chart.png").stat().st_size > 10_000


def test_it_is_gone_with_its_block(programs, root, tmp_path):
    with nginx(root, workers=1, state_dir=tmp_path / "state") as server:
        assert httpx.get(f"{server.plain_url}/models/blob.bin").content == DATA
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.plain_url}/models/blob.bin")


def test_a_binary_that_is_not_there_is_said_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("NGINX_BIN", str(tmp_path / "nginx"))
    with pytest.raises(NginxError, match=r"there is no .*nginx: install nginx .* or put both"):
        ensure_programs()


def test_only_the_programs_see_unpacked_libraries(tmp_path):
    """What starts them, and what they are started by, keeps the system's."""
    unpacked = Programs(tmp_path / "nginx", tmp_path / "openssl", (tmp_path / "a", tmp_path / "b"))
    assert unpacked.command(unpacked.nginx) == [
        "env",
        f"LD_LIBRARY_PATH={tmp_path}/a:{tmp_path}/b",
        str(tmp_path / "nginx"),
    ]
    assert Programs(tmp_path / "nginx", tmp_path / "openssl").command(tmp_path / "nginx") == [str(tmp_path / "nginx")]
