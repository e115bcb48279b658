"""`push` against a real Azurite."""

from __future__ import annotations

import hashlib
import json
import logging
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from azure.storage.blob import ContainerClient
from safetensors.numpy import save_file

from streaming.digests import crc64nvme
from streaming.errors import AccessDenied, CheckpointError, SourceError, SourceUnavailable
from streaming.manifest import parse_manifest
from streaming.options import AzureOptions, SourceOptions
from streaming.upload import push
from tools.azurite import ACCOUNT_KEY, ACCOUNT_NAME, Azurite


@pytest.fixture
def container(azurite: Azurite) -> Iterator[ContainerClient]:
    """A container that does not exist yet, under a name of its own."""
    name = f"push-{uuid.uuid4().hex}"
    with ContainerClient.from_connection_string(azurite.connection_string, name) as client:
        yield client


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Two shards, one of them longer than a block, and what a folder of the hub has besides."""
    folder = tmp_path / "checkpoint"
    (folder / ".git").mkdir(parents=True)
    random = np.random.default_rng(7)
    save_file({"a": random.standard_normal((5 << 20), dtype=np.float32)}, folder / "model-1.safetensors")
    save_file({"b": random.standard_normal(1000, dtype=np.float32)}, folder / "model-2.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "tokenizer.model").write_bytes(b"\0\1\2")
    (folder / "empty.txt").write_bytes(b"")
    for name in (".gitattributes", ".git/config", "pytorch_model.bin", "model.gguf"):
        (folder / name).write_text("left out")
    return folder


def blobs(container: ContainerClient) -> dict[str, bytes]:
    """Every blob of the container, by name."""
    return {name: container.download_blob(name).readall() for name in container.list_blob_names()}


def etags_of(container: ContainerClient) -> dict[str, str]:
    """The version of every blob of the container, by name."""
    return {blob.name: blob.etag for blob in container.list_blobs()}


PUSHED = ("config.json", "empty.txt", "model-1.safetensors", "model-2.safetensors", "tokenizer.model")


def test_every_file_reads_back_bit_equal(
    checkpoint: Path, container: ContainerClient, azurite_source: SourceOptions
) -> None:
    """A push creates the container and puts exactly the checkpoint's files under the prefix, unchanged."""
    report = push(checkpoint, f"az://{container.container_name}/llm/v1", azurite_source)

    found = blobs(container)
    del found["llm/v1/coldstream.json"]
    assert found == {f"llm/v1/{name}": (checkpoint / name).read_bytes() for name in PUSHED}
    assert (report.uploaded, report.skipped) == (len(PUSHED), 0)
    assert report.uploaded_bytes == sum((checkpoint / name).stat().st_size for name in PUSHED)


def test_the_files_md5_is_stored_with_each_blob(
    checkpoint: Path, container: ContainerClient, azurite_source: SourceOptions
) -> None:
    """A blob carries the MD5 of the whole file, also where it was sent in blocks."""
    push(checkpoint, f"az://{container.container_name}", azurite_source)

    stored = {blob.name: bytes(blob.content_settings.content_md5) for blob in container.list_blobs()}
    assert stored.pop("coldstream.json") == hashlib.md5(blobs(container)["coldstream.json"]).digest()
    assert stored == {name: hashlib.md5((checkpoint / name).read_bytes()).digest() for name in PUSHED}


def test_a_second_push_sends_nothing(
    checkpoint: Path, container: ContainerClient, azurite_source: SourceOptions
) -> None:
    """What is already there unchanged is skipped and keeps its version."""
    uri = f"az://{container.container_name}/llm"
    push(checkpoint, uri, azurite_source)
    etags = etags_of(container)

    report = push(checkpoint, uri, azurite_source)

    assert (report.uploaded, report.skipped, report.uploaded_bytes) == (0, len(PUSHED), 0)
    assert etags_of(container) == etags


def test_a_changed_file_is_sent_alone(
    checkpoint: Path, container: ContainerClient, azurite_source: SourceOptions
) -> None:
    """A file with the same size but other bytes is uploaded again, and beside it the manifest alone."""
    uri = f"az://{container.container_name}/llm"
    push(checkpoint, uri, azurite_source)
    etags = etags_of(container)
    shard = checkpoint / "model-1.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)

    report = push(checkpoint, uri, azurite_source)

    assert (report.uploaded, report.uploaded_bytes) == (1, len(content))
    assert dict(etags_of(container).items() - etags.items()).keys() == {
        "llm/model-1.safetensors",
        "llm/coldstream.json",
    }
    assert container.download_blob("llm/model-1.safetensors").readall() == content


def test_the_manifest_describes_what_was_pushed(
    checkpoint: Path, container: ContainerClient, azurite_source: SourceOptions
) -> None:
    """It names every file with its size, the service's ETag and its SHA-256, and cuts shards behind their headers."""
    push(checkpoint, f"az://{container.container_name}", azurite_source)

    manifest = parse_manifest(blobs(container)["coldstream.json"])
    assert set(manifest.files) == set(PUSHED)
    for name, file in manifest.files.items():
        content, properties = (checkpoint / name).read_bytes(), container.get_blob_client(name).get_blob_properties()
        assert (file.size_bytes, file.etag) == (len(content), properties.etag.strip('"'))
        assert file.sha256 == hashlib.sha256(content).hexdigest()
        header_bytes = 8 + int.from_bytes(content[:8], "little") if name.endswith(".safetensors") else 0
        assert file.data_start == header_bytes
        blocks = file.blocks(manifest.block_bytes)
        bounds = [blocks.bounds(number) for number in range(blocks.count)]
        assert b"".join(content[start:end] for start, end in bounds) == content
        crcs = [crc64nvme(content[start:end]) for start, end in bounds]
        assert crcs == [blocks.crc(number) for number in range(blocks.count)]


def test_a_push_that_fails_leaves_no_manifest_or_the_old_one(
    checkpoint: Path, container: ContainerClient, azurite_source: SourceOptions
) -> None:
    """What says that a checkpoint is whole is written once it is."""
    uri = f"az://{container.container_name}"
    unreadable = checkpoint / "tokenizer.model"
    unreadable.unlink()
    unreadable.symlink_to("/proc/self/mem")  # there, and cannot be read
    with pytest.raises(CheckpointError, match="cannot be read"):
        push(checkpoint, uri, azurite_source)
    assert "coldstream.json" not in blobs(container)

    unreadable.unlink()
    push(checkpoint, uri, azurite_source)
    before = blobs(container)["coldstream.json"]
    save_file({"b": np.ones(2000, dtype=np.float32)}, checkpoint / "model-2.safetensors")
    unreadable.symlink_to("/proc/self/mem")
    with pytest.raises(CheckpointError, match="cannot be read"):
        push(checkpoint, uri, azurite_source)
    assert blobs(container)["coldstream.json"] == before


def test_a_neighbouring_prefix_is_not_taken_for_ours(
    checkpoint: Path, container: ContainerClient, azurite_source: SourceOptions
) -> None:
    """A model under a prefix that begins with ours is another model: nothing of it counts as uploaded."""
    push(checkpoint, f"az://{container.container_name}/llm-2", azurite_source)

    assert push(checkpoint, f"az://{container.container_name}/llm", azurite_source).skipped == 0


def test_what_is_left_out_is_logged(
    checkpoint: Path, container: ContainerClient, azurite_source: SourceOptions, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights in another format are named in the log rather than silently dropped."""
    with caplog.at_level(logging.INFO, "streaming.upload_origin"):
        push(checkpoint, f"az://{container.container_name}", azurite_source)

    assert "left out of the push: model.gguf, pytorch_model.bin" in caplog.messages


def test_a_wrong_key_is_access_denied_without_the_key(
    checkpoint: Path, container: ContainerClient, azurite: Azurite
) -> None:
    """A key that the service refuses gives AccessDenied, on one line, with no key in it."""
    wrong_key = "d3Jvbmc" + ACCOUNT_KEY[7:]
    azure = AzureOptions(account_name=ACCOUNT_NAME, account_key=wrong_key, endpoint=azurite.endpoint)

    with pytest.raises(AccessDenied) as raised:
        push(checkpoint, f"az://{container.container_name}", SourceOptions(azure=azure))

    message = str(raised.value)
    assert "access denied" in message
    assert "\n" not in message
    assert wrong_key not in message


def test_no_server_is_source_unavailable_in_bounded_time(checkpoint: Path, azurite_source: SourceOptions) -> None:
    """Where nobody listens, push gives up within its retries and says whom it could not reach."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}/{ACCOUNT_NAME}"
    azure = AzureOptions(account_name=ACCOUNT_NAME, account_key=ACCOUNT_KEY, endpoint=endpoint)
    source = msgspec.structs.replace(azurite_source, azure=azure, max_retries=1)
    start_s = time.monotonic()

    with pytest.raises(SourceUnavailable, match=f"{endpoint}: Connection refused"):
        push(checkpoint, "az://models/llm", source)

    assert time.monotonic() - start_s < 20


def test_a_folder_without_safetensors_is_refused(tmp_path: Path, azurite_source: SourceOptions) -> None:
    """Only safetensors checkpoints can be served, so nothing else is uploaded."""
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")

    with pytest.raises(CheckpointError, match=r"no \*.safetensors"):
        push(tmp_path, "az://models/llm", azurite_source)


def test_a_missing_folder_is_named(tmp_path: Path, azurite_source: SourceOptions) -> None:
    """A mistyped path is an error that repeats it."""
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        push(tmp_path / "nowhere", "az://models/llm", azurite_source)


def test_a_destination_that_is_not_azure_is_refused(checkpoint: Path, azurite_source: SourceOptions) -> None:
    """Push writes to Azure only, and says so before it reads anything."""
    with pytest.raises(SourceError, match="use az://"):
        push(checkpoint, "s3://bucket/llm", azurite_source)
