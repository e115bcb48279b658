"""A server tells whether its weights were verified, and ends rather than serve others."""

from __future__ import annotations

import json
import os
import re
import subprocess

import pytest
from azure.storage.blob import ContainerClient

from streaming.manifest import parse_manifest
from streaming.upload import push
from tests.coldstream import serve_command, serving
from tools.ports import free_port

SHARD = "model-00001-of-00002.safetensors"


def test_the_log_says_what_was_verified(pushed_demo, demo_model_dir, azure_environment, tmp_path):
    """Weights with a manifest are served as verified; those of a folder without one are said not to be."""
    with serving(pushed_demo, log_path=tmp_path / "pushed", environ=azure_environment) as server:
        server.wait_ready()
        assert re.search(r"verified with the manifest: \d{9} bytes, 0 not", server.log())
        assert server.complete("Hello", max_tokens=2)["choices"]
    with serving(str(demo_model_dir), log_path=tmp_path / "folder") as server:
        server.reach("warming")
        assert "unverified: no manifest" in server.log()


@pytest.mark.parametrize("refuses", [True, False])
def test_a_flipped_bit_ends_the_start_unless_it_is_let_pass(
    demo_model_dir, azurite, azurite_source, azure_environment, tmp_path, refuses
):
    """Exit 4 with the blob, the range and both digests; with the setting off the server says so and goes on."""
    name = f"flipped-{str(refuses).lower()}"
    push(demo_model_dir, f"az://{name}", azurite_source, quiet=True)
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
