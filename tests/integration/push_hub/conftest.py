"""A hub with a repository, a container that does not exist yet, and the way to both."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from azure.storage.blob import ContainerClient
from safetensors.numpy import save_file

from tests.checkpoints import write_index
from tests.hub import Hub, hub
from tests.integration.push_hub.pushes import MIB, REPO, SHARDS, TOKEN, Faults
from tools.azurite import Azurite


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def served(tmp_path: Path, faults: Faults) -> Iterator[Hub]:
    """A hub, whose large files a test can break."""
    with hub(tmp_path / "hub", hook=faults) as running:
        yield running


@pytest.fixture
def checkpoint(folder: Path) -> Path:
    """Two shards with an index, and what a repository has besides."""
    random = np.random.default_rng(7)
    (folder / "original").mkdir(parents=True)
    for number, shard in enumerate(SHARDS):
        save_file({f"t{number}": random.standard_normal(3 * MIB // 4 + number, dtype=np.float32)}, folder / shard)
    write_index(folder, {f"t{number}": shard for number, shard in enumerate(SHARDS)})
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_bytes(random.bytes(MIB // 4))
    (folder / "special_tokens_map.json").write_bytes(b"")
    for name in (".gitattributes", "pytorch_model.bin", "consolidated.safetensors", "original/params.json"):
        (folder / name).write_text("left out")
    return folder


@pytest.fixture
def commit(served: Hub, checkpoint: Path) -> str:
    """The checkpoint on the hub."""
    return served.commit(REPO, checkpoint)


@pytest.fixture
def container(azurite: Azurite) -> Iterator[ContainerClient]:
    """A container that does not exist yet, under a name of its own."""
    with ContainerClient.from_connection_string(azurite.connection_string, f"hub-{uuid.uuid4().hex}") as client:
        yield client


@pytest.fixture
def environ(served: Hub, azurite: Azurite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The way to both, and nothing of this machine's own."""
    for name in os.environ:
        if name.startswith(("HF_", "HUGGING")):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    variables = {"HF_ENDPOINT": served.url, "HF_HOME": str(home), "TMPDIR": str(home), "HF_TOKEN": TOKEN}
    return {"AZURE_STORAGE_CONNECTION_STRING": azurite.connection_string, **variables}
