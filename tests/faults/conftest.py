"""What the tests of faults share: one tiny checkpoint, as push leaves it, and its oracle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import ContainerClient
from safetensors.torch import load_file

from streaming.options import SourceOptions
from streaming.upload import push
from tests.checkpoints import raw
from tests.faults.blobs import invert
from tests.faults.faults import Overwrite
from tests.faults.loading import Outcome, load_here
from tests.faults.schedules import Plan
from tests.faults.server import FaultServer
from tools.azurite import Azurite
from tools.random_checkpoint import write_checkpoint


class Checkpoint:
    """A folder as it lies in a container, with its ETags; by the safetensors library every tensor and its shard."""

    def __init__(self, folder: Path, etags: Mapping[str, str], *, is_verified: bool):
        self.folder = folder
        self.etags = etags
        self.is_verified = is_verified
        loaded = {path.name: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
        self._shards = {home: {name: raw(tensor) for name, tensor in shard.items()} for home, shard in loaded.items()}
        self._tensors = {name: data for shard in self._shards.values() for name, data in shard.items()}

    def serve(self, plan: Plan | None = None, **options: Any) -> FaultServer:
        """A server of it that plays this plan."""
        return FaultServer(self.folder, (plan or Plan()).schedule(), etags=self.etags, **options)

    def check(self, outcome: Outcome, plan: Plan) -> None:
        """Every shard is of one version: the first one's, or that of who overwrites."""
        assert outcome.tensors.keys() == self._tensors.keys()
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
def tiny(tmp_path_factory: pytest.TempPathFactory, azurite: Azurite, azurite_source: SourceOptions) -> Checkpoint:
    """Two shards of 0.3 MB and whatever push adds to them; read it, do not write to it."""
    written, pushed = tmp_path_factory.mktemp("tiny"), tmp_path_factory.mktemp("pushed")
    write_checkpoint(written, "tiny", shards=2)
    push(written, "az://faults", azurite_source, quiet=True)
    etags = {}
    with ContainerClient.from_connection_string(azurite.connection_string, "faults") as container:
        for blob in container.list_blobs():
            (pushed / blob.name).write_bytes(container.download_blob(blob.name).readall())
            etags[blob.name] = f'"{blob.etag.strip(chr(34))}"'
    # What push adds is a manifest, and with a manifest a load is verified.
    return Checkpoint(pushed, etags, is_verified=len(etags) > len(list(written.iterdir())))


@pytest.fixture(scope="session")
def warm(tiny: Checkpoint) -> None:
    """Obstore's runtime is there: it is made once per process and never ends, so it is no leak of a load."""
    with tiny.serve() as server:
        tiny.check(load_here(server.url, SourceOptions()), Plan())
