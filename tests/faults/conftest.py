"""What the tests of faults share: one tiny checkpoint, with a manifest and without one, and its oracle."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from streaming.manifest import MANIFEST_NAME
from streaming.options import SourceOptions
from tests.checkpoints import raw, write_manifest
from tests.faults.blobs import invert
from tests.faults.faults import Overwrite
from tests.faults.loading import Outcome, load_here
from tests.faults.schedules import Plan
from tests.faults.server import FaultServer
from tools.random_checkpoint import write_checkpoint

# Less than push would choose, so that a few hundred kilobytes are dozens of blocks.
BLOCK_BYTES = 8 << 10


class Checkpoint:
    """A folder as it lies in a container; by the safetensors library every tensor and its shard."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.is_verified = (folder / MANIFEST_NAME).exists()
        loaded = {path.name: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
        self._shards = {home: {name: raw(tensor) for name, tensor in shard.items()} for home, shard in loaded.items()}
        self.tensors = {name: data for shard in self._shards.values() for name, data in shard.items()}

    def serve(self, plan: Plan | None = None, **options: Any) -> FaultServer:
        """A server of it that plays this plan."""
        return FaultServer(self.folder, (plan or Plan()).schedule(), **options)

    def check(self, outcome: Outcome, plan: Plan) -> None:
        """Every shard is of one version: the first one's, or that of who overwrites."""
        assert outcome.tensors.keys() == self.tensors.keys()
        may_be_other = any(isinstance(rule.fault, Overwrite) for rule in plan.rules) and not self.is_verified
        for home, shard in self._shards.items():
            landed = {name: outcome.tensors[name] for name in shard}
            other = {name: invert(data) for name, data in shard.items()}
            # Not compared by pytest: it would print every byte.
            assert bool(landed == shard or (may_be_other and landed == other)), f"{home} is corrupt"
        if self.is_verified:
            for name, data in outcome.files.items():
                assert bool(data == (self.folder / name).read_bytes()), f"{name} is corrupt"


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Two shards of 0.3 MB without a manifest; read it, do not write to it."""
    folder = tmp_path_factory.mktemp("plain")
    write_checkpoint(folder, "tiny", shards=2)
    return Checkpoint(folder)


@pytest.fixture(scope="session")
def tiny(plain: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The same with a manifest of small blocks."""
    folder = tmp_path_factory.mktemp("tiny")
    shutil.copytree(plain.folder, folder, dirs_exist_ok=True)
    write_manifest(folder, BLOCK_BYTES)
    return Checkpoint(folder)


@pytest.fixture(scope="session")
def warm(tiny: Checkpoint) -> None:
    """Obstore's runtime is there: it is made once per process and never ends, so it is no leak of a load."""
    with tiny.serve() as server:
        tiny.check(load_here(server.url, SourceOptions()), Plan())
