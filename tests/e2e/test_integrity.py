"""A server tells whether its weights were verified, and ends rather than serve others."""

from __future__ import annotations

import json
import os
import re
import subprocess

import pytest
from azure.storage.blob import ContainerClient

from app.telemetry import names
from streaming.manifest import parse_manifest
from streaming.upload import push
from tests.coldstream import Server, serve_command, serving
from tests.unit.test_metrics import samples
from tools.ports import free_port

SHARD = "model-00001-of-00002.safetensors"


VERIFIED = names.VERIFIED_BYTES.name
UNVERIFIED = names.UNVERIFIED_BYTES.name


@pytest.fixture(scope="module")
def without_manifest(small_model, azurite, azurite_source) -> str:
    """A container with a model as other tools upload it."""
    push(small_model.folder, "az://no-manifest", azurite_source, quiet=True)
    with ContainerClient.from_connection_string(azurite.connection_string, "no-manifest") as container:
        container.delete_blob("coldstream.json")
    return "az://no-manifest"


def figures(server: Server) -> dict[str, float]:
    """What is counted as verified, and as not."""
    found = samples(server.client.get("/metrics").text)
    return {name: found[name][""] for name in (VERIFIED, UNVERIFIED)}


def test_verified_weights_are_logged_and_counted_as_such(pushed_small, azure_environment, tmp_path):
    """The line that says that they have landed has every byte as verified, as /metrics has."""
    with serving(pushed_small, log_path=tmp_path / "log", environ=azure_environment) as server:
        server.wait_ready()
        (line,) = re.findall(r"streamed .* (\d+) bytes, .*; (\d+) bytes verified, (\d+) unverified\"", server.log())
        assert int(line[0]) == int(line[1]) == figures(server)[VERIFIED] > 50e6
        assert int(line[2]) == figures(server)[UNVERIFIED] == 0
        assert server.complete("Hello", max_tokens=2)["choices"]


@pytest.mark.parametrize("strategy", ["direct-gpu", "host-staging"])
def test_a_container_without_a_manifest_is_served_as_unverified(
    without_manifest, azure_environment, tmp_path, strategy
):
    """One line of the log says how many bytes nobody compared, and why, whichever way they came; /metrics counts them."""
    flags = ("--load-strategy", strategy)
    with serving(without_manifest, *flags, log_path=tmp_path / "log", environ=azure_environment) as server:
        server.wait_ready()
        (line,) = [line for line in server.log().splitlines() if "verified" in line]
        found = re.search(r"; 0 bytes verified, (\d+) unverified \(no manifest: ", line)
        assert found is not None, line
        assert int(found[1]) == figures(server)[UNVERIFIED] > 50e6
        assert figures(server)[VERIFIED] == 0
        assert server.complete("Hello", max_tokens=2)["choices"]


def test_host_staging_verifies_no_weights(pushed_small, azure_environment, tmp_path):
    """Also where there is a manifest, and the log says why."""
    flags = ("--load-strategy", "host-staging")
    with serving(pushed_small, *flags, log_path=tmp_path / "log", environ=azure_environment) as server:
        server.reach("warming")
        assert re.search(r"staged .*; 0 bytes verified, \d{8} unverified \(host-staging compares ", server.log())


@pytest.mark.parametrize("refuses", [True, False])
def test_a_flipped_bit_ends_the_start_unless_it_is_let_pass(
    small_model, azurite, azurite_source, azure_environment, tmp_path, refuses
):
    """Exit 4 with the blob, the range and both digests; with the setting off the server says so and goes on."""
    name = f"flipped-{str(refuses).lower()}"
    push(small_model.folder, f"az://{name}", azurite_source, quiet=True)
    with ContainerClient.from_connection_string(azurite.connection_string, name) as container:
        blocks = parse_manifest(container.download_blob("coldstream.json").readall()).blocks_of(SHARD)
        content = bytearray(container.download_blob(SHARD).readall())
        start, end = blocks.bounds(3)
        content[start] ^= 1
        container.upload_blob(SHARD, bytes(content), overwrite=True)
    told = rf"az://{name}/{SHARD} \[{start}, {end}\): CRC-64/NVME \w{{16}} instead of {blocks.crc(3):016x}"
    if refuses:
        command = serve_command(f"az://{name}", "--log-format", "text", port=free_port())
        done = subprocess.run(
            command, env={**os.environ, **azure_environment}, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 4, done.stderr
        assert re.search(f"CheckpointError.*{told}", done.stderr)
        return
    flags = ("--fail-if-checksum-mismatch", "false")
    with serving(f"az://{name}", *flags, log_path=tmp_path / "log", environ=azure_environment) as server:
        server.wait_ready()
        fallbacks = server.client.get("/startupz").json()["fallbacks"]
        assert re.search(told, json.dumps(fallbacks)), fallbacks
        assert re.search(told, server.log())
