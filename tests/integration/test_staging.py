"""The loader of host-staging: whole shards on a disk that nothing is left on, typed in failure."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from azure.storage.blob import BlobClient
from safetensors.torch import load_file, save_file

from app.engine.staged_weights import StagedWeights
from app.messages import StagedShard
from streaming.errors import CheckpointError, SourceUnavailable
from streaming.messages import BlobVersion, Extent, LandedChunks, Staged
from streaming.options import HOST_STAGING, PipelineOptions, SourceOptions
from streaming.staging import Staging
from streaming.upload import push
from streaming.uri import FileLocation
from streaming.wire import MAX_FDS
from tests.checkpoints import SMALL, random_shards
from tests.loader import as_stored, load
from tools.blob_server import BlobServer


def content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def test_a_download_tells_that_it_lives(folder, azurite_source):
    """Before the first shard is on disk the loader has spoken: a watchdog must not take minutes of silence for a hang."""
    random_shards(folder)
    push(folder, "az://staging/alive", azurite_source, quiet=True)
    said = []
    load(
        "az://staging/alive",
        strategy=HOST_STAGING,
        source=azurite_source,
        pipeline=SMALL,
        on_message=lambda _child, message: said.append(type(message)),
    )
    assert LandedChunks in said[: said.index(Staged)]


def test_shards_are_staged_whole_and_unnamed(folder, tmp_path, azurite_source):
    """Every shard's descriptor holds the blob's bytes, and no folder names it, then or later."""
    random_shards(folder)
    push(folder, "az://staging/whole", azurite_source, quiet=True)
    disk = tmp_path / "disk"
    disk.mkdir()
    seen = []
    result = load(
        "az://staging/whole",
        strategy=HOST_STAGING,
        source=azurite_source,
        pipeline=SMALL,
        environ={"TMPDIR": str(disk)},
        on_message=lambda _child, _message: seen.extend(disk.iterdir()),
    )
    assert result.error is None
    assert {name: content(fd) for name, fd in result.staged.items()} == {
        path.name: path.read_bytes() for path in folder.glob("*.safetensors")
    }
    assert all(os.readlink(f"/proc/self/fd/{fd}").startswith(str(disk)) for fd in result.staged.values())  # noqa: PTH115
    assert [*seen, *disk.iterdir()] == []
    assert result.report.fetched_bytes == sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    times = {shard.shard: shard for shard in result.report.shards}
    assert {name: shard.nbytes for name, shard in times.items()} == {
        path.name: path.stat().st_size for path in folder.glob("*.safetensors")
    }
    ends_s = [at_s for shard in result.report.shards for at_s in shard.fetch]
    assert ends_s == sorted(ends_s)  # one after the other
    assert sorted(result.landed_chunk_ids) == sorted(chunk.chunk_id for chunk in result.plan.chunks)
    assert (result.fd, result.memory.kind) == (None, "staged")


@pytest.mark.parametrize("scheme", ["file", "plain path"])
def test_local_shards_are_opened_where_they_are(folder, scheme):
    """Nothing is downloaded from a folder."""
    random_shards(folder, megabytes=1)
    result = load({"file": f"file://{folder}", "plain path": str(folder)}[scheme], strategy=HOST_STAGING)
    assert result.error is None
    assert len(result.staged) == 3
    for name, fd in result.staged.items():
        assert os.path.samestat(os.fstat(fd), (folder / name).stat())
    assert result.report.fetched_bytes == 0


def test_a_killed_loader_is_followed_by_one_that_stages_the_rest(folder, azurite_source):
    """Shards that were on disk stay there; another loader downloads the others."""
    random_shards(folder)
    push(folder, "az://staging/killed", azurite_source, quiet=True)

    def kill(child, message):
        if isinstance(message, Staged):
            child.process.send_signal(signal.SIGKILL)

    options = {"strategy": HOST_STAGING, "source": azurite_source, "pipeline": SMALL}
    cut = load("az://staging/killed", **options, on_message=kill)
    assert cut.report is None
    assert 1 <= len(cut.staged) < 3
    rest = load("az://staging/killed", **options, resume=cut)
    assert rest.error is None
    assert rest.staged.keys().isdisjoint(cut.staged)
    staged = {name: content(fd) for name, fd in (cut.staged | rest.staged).items()}
    assert staged == {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def overwrite(shard, uri, azurite_source):
    """A layout that comes while the shard is being replaced."""

    def answer(described):
        shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
        if uri.startswith("az://"):
            push(shard.parent, uri, azurite_source, quiet=True)
        return as_stored(described)

    return answer


@pytest.mark.parametrize("scheme", ["az", "file"])
def test_a_shard_overwritten_after_its_header_is_refused(folder, azurite_source, scheme):
    """Two versions are never mixed."""
    random_shards(folder, megabytes=1)
    shard = folder / "model-00001.safetensors"
    uri = {"az": "az://staging/changed", "file": f"file://{folder}"}[scheme]
    push(folder, "az://staging/changed", azurite_source, quiet=True)
    result = load(
        uri, strategy=HOST_STAGING, source=azurite_source, layout=overwrite(shard, uri, azurite_source), pipeline=SMALL
    )
    assert result.report is None
    assert (result.error.kind, result.error.exit_code) == ("BlobChanged", 3)
    assert "model-00001.safetensors was overwritten" in result.error.message


def test_a_full_disk_is_said(folder, azurite_source):
    """What cannot be written is a device error of one line that names the shard and a way out."""
    random_shards(folder)
    push(folder, "az://staging/full", azurite_source, quiet=True)

    def limit(child, _message):
        resource.prlimit(child.process.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))

    result = load("az://staging/full", strategy=HOST_STAGING, source=azurite_source, pipeline=SMALL, on_message=limit)
    assert result.report is None
    assert (result.error.kind, result.error.exit_code) == ("DeviceError", 5)
    assert "az://staging/full/model-00002.safetensors" in result.error.message
    assert "File too large" in result.error.message
    assert "TMPDIR" in result.error.message


def test_a_shard_removed_after_its_header_is_named(folder, azurite_source):
    """A blob that is gone is the source's error."""
    random_shards(folder, megabytes=1)
    push(folder, "az://staging/lost", azurite_source, quiet=True)

    def remove(described):
        string = azurite_source.azure.connection_string
        BlobClient.from_connection_string(string, "staging", "lost/model-00002.safetensors").delete_blob()
        return as_stored(described)

    result = load("az://staging/lost", strategy=HOST_STAGING, source=azurite_source, layout=remove, pipeline=SMALL)
    assert result.error.exit_code == 3
    assert "az://staging/lost/model-00002.safetensors" in result.error.message


def test_other_schemes_are_refused_before_anything_is_read(folder):
    """host-staging is azure-storage-blob's way: what it cannot read is said at once."""
    random_shards(folder, megabytes=1)
    with BlobServer(folder) as server:
        result = load(server.url, strategy=HOST_STAGING)
        assert server.requests == []
    assert (result.error.kind, result.error.exit_code) == ("SourceError", 3)
    assert "--load-strategy direct-gpu" in result.error.message


def test_more_shards_than_one_message_carries_are_refused(tmp_path):
    """The limit is said before the first download."""
    staging = Staging(FileLocation(tmp_path), SourceOptions(), PipelineOptions())
    versions = [BlobVersion(f"{number}.safetensors", 8, None) for number in range(MAX_FDS + 1)]
    with pytest.raises(CheckpointError, match=f"{MAX_FDS + 1} shards"):
        staging.stage(versions, lambda _version, _fd: None, lambda: None)
    with pytest.raises(SourceUnavailable, match=r"0\.safetensors"):
        staging.stage(versions[:1], lambda _version, _fd: None, lambda: None)


def weights(shape=(4, 6)) -> StagedWeights:
    size = 2 * shape[0] * shape[1]
    return StagedWeights(512, {"a": Extent("BF16", shape, 256, size)}, "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_are_copied_to_their_addresses_and_cast(tmp_path, dtype):
    """What the engine loads is what torch casts, under its stored name."""
    shard = tmp_path / "x.safetensors"
    save_file({"source": torch.randn(4, 6).to(dtype), "other": torch.zeros(3)}, shard)
    staged = weights()
    staged.landed([StagedShard("x.safetensors", {"a": "source"})], [os.open(shard, os.O_RDONLY)])
    loaded = staged.flat[256 : 256 + 48].view(torch.bfloat16).view(4, 6)
    assert torch.equal(loaded, load_file(shard)["source"].to(torch.bfloat16))


def test_a_damaged_shard_is_named_and_closed(tmp_path):
    """A refusal of safetensors is a checkpoint error, and no descriptor is left."""
    shard = tmp_path / "x.safetensors"
    shard.write_bytes(b"\xff" * 100)
    fd = os.open(shard, os.O_RDONLY)
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        weights().landed([StagedShard("x.safetensors", {"a": "a"})], [fd])
    assert not Path(f"/proc/self/fd/{fd}").exists()
