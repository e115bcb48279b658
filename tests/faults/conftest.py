"""What the tests of faults share: one tiny checkpoint and its oracle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from safetensors.torch import load_file

from streaming.options import SourceOptions
from tests.checkpoints import raw
from tests.faults.blobs import invert
from tests.faults.loading import load_here
from tests.faults.server import FaultServer
from tools.random_checkpoint import write_checkpoint


class Checkpoint:
    """A folder and, by the safetensors library, every tensor's bytes and its shard."""

    def __init__(self, folder: Path, tensors: Mapping[str, bytes], shard_of: Mapping[str, str]):
        self.folder = folder
        self.tensors = tensors
        self.shard_of = shard_of

    def wrong_shards(self, landed: Mapping[str, bytes], *, may_be_overwritten: bool) -> list[str]:
        """Shards whose landed tensors are not all of one version: the first one's, or an overwriting one's."""
        assert landed.keys() == self.tensors.keys()
        wrong = []
        for shard in sorted(set(self.shard_of.values())):
            names = [name for name, home in self.shard_of.items() if home == shard]
            is_first = all(landed[name] == self.tensors[name] for name in names)
            is_second = may_be_overwritten and all(landed[name] == invert(self.tensors[name]) for name in names)
            wrong += [] if is_first or is_second else [shard]
        return wrong


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Two shards of 0.3 MB; read it, do not write to it."""
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint(folder, "tiny", shards=2)
    loaded = {path.name: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
    tensors = {name: raw(tensor) for shard in loaded.values() for name, tensor in shard.items()}
    return Checkpoint(folder, tensors, {name: home for home, shard in loaded.items() for name in shard})


@pytest.fixture(scope="session")
def warm(tiny: Checkpoint) -> None:
    """Obstore's runtime is there: it is made once per process and never ends, so it is no leak of a load."""
    with FaultServer(tiny.folder) as server:
        assert load_here(server.url, SourceOptions()).error is None
