"""The loader process against real sources: bit-exact, typed in failure, bounded in memory, resumable."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from streaming.messages import LandedChunks, Layout, Planned, TensorLayout
from streaming.options import AzureOptions, PipelineOptions, SourceOptions
from streaming.upload import push
from tests.loader import ORIGIN, load
from tests.unit.checkpoints import shard_bytes, write_checkpoint
from tools.blob_server import BlobServer, Fault

SMALL = PipelineOptions(lanes=4, chunk_bytes=64 << 10)


def raw(tensor: torch.Tensor) -> bytes:
    """A tensor's bytes, of whatever dtype."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def random_shards(folder: Path, *, megabytes: int = 3) -> dict[str, torch.Tensor]:
    """Three shards of every dtype that torch and safetensors share, odd sizes and scalars among them."""
    generator = torch.Generator().manual_seed(0)
    dtypes = [
        torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64,
        torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64,
        torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
    ]  # fmt: skip
    tensors = {}
    for number, dtype in enumerate(dtypes):
        for shape in ((), (3, 5), (megabytes * 1024 * 1024 // len(dtypes) // dtype.itemsize,)):
            elements = int(np.prod(shape))
            data = torch.randint(0, 256, (elements * dtype.itemsize,), dtype=torch.uint8, generator=generator)
            data = data % 2 if dtype is torch.bool else data
            tensors[f"t{number}.{len(shape)}"] = data.view(dtype).reshape(shape)
    tensors["empty"] = torch.empty((0, 4))
    names = list(tensors)
    shards = {f"model-0000{part}.safetensors": {n: tensors[n] for n in names[part::3]} for part in range(3)}
    folder.mkdir(parents=True, exist_ok=True)
    for shard, content in shards.items():
        save_file(content, folder / shard)
    write_index(folder, {name: shard for shard, content in shards.items() for name in content})
    (folder / "config.json").write_text("{}")
    return {name: tensor for shard in shards for name, tensor in load_file(folder / shard).items()}


def write_index(folder: Path, weight_map: dict[str, str]) -> None:
    import json

    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint"


def test_every_dtype_lands_bit_equal_through_azurite(folder, azurite_source):
    """Tensors streamed from a container equal what safetensors itself loads from disk, bit for bit."""
    expected = random_shards(folder)
    push(folder, "az://exact/all-dtypes", azurite_source, quiet=True)
    result = load("az://exact/all-dtypes", source=azurite_source, pipeline=SMALL)
    assert result.error is None
    assert result.plan is not None
    assert len(result.plan.chunks) > 20
    assert {name: result.tensor(name) for name in expected} == {name: raw(t) for name, t in expected.items()}


def test_the_demo_model_lands_bit_equal_through_azurite(demo_model_dir, pushed_demo, azurite_source):
    """A real model's weights arrive as safetensors loads them."""
    result = load(pushed_demo, source=azurite_source, pipeline=PipelineOptions())
    assert result.error is None
    for shard in sorted(demo_model_dir.glob("*.safetensors")):
        for name, tensor in load_file(shard).items():
            assert result.tensor(name) == raw(tensor), name


@pytest.mark.parametrize("scheme", ["file", "plain path", "http"])
def test_other_sources_land_the_same(folder, scheme):
    """Folders and plain HTTP go through the same path."""
    expected = random_shards(folder, megabytes=1)
    with BlobServer(folder) as server:
        uri = {"file": f"file://{folder}", "plain path": str(folder), "http": server.url}[scheme]
        result = load(uri, pipeline=SMALL)
    assert result.error is None
    assert all(result.tensor(name) == raw(tensor) for name, tensor in expected.items())


def test_s3_lands_the_same(folder, monkeypatch):
    """An S3 bucket goes through the same path."""
    import boto3
    from moto.server import ThreadedMotoServer

    expected = random_shards(folder, megabytes=1)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="models")
        for path in folder.iterdir():
            client.put_object(Bucket="models", Key=f"x/{path.name}", Body=path.read_bytes())
        result = load("s3://models/x", pipeline=SMALL)
    finally:
        server.stop()
    assert result.error is None
    assert all(result.tensor(name) == raw(tensor) for name, tensor in expected.items())


def test_a_single_file_without_an_index(folder):
    """model.safetensors alone is a checkpoint, and so is any one .safetensors file that can be listed."""
    folder.mkdir()
    for name in ("model.safetensors", "weights.safetensors"):
        (folder / name).write_bytes(shard_bytes({"a": ("U8", (3,), b"abc")}))
        assert load(str(folder)).tensor("a") == b"abc"
        (folder / name).unlink()


@pytest.mark.parametrize("dtypes", [("F32", "BF16"), ("BF16", "F32"), ("F16", "F32"), ("F32", "F16"), ("F64", "F32")])
def test_casts_in_the_slot_are_torchs(folder, dtypes):
    """Every finite and infinite value is cast bit for bit as torch casts it; NaN stays NaN."""
    source, stored = dtypes
    names = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    bits = torch.randint(-(2**31), 2**31 - 1, (100_001,), dtype=torch.int32)
    values = bits.view(torch.float32)
    values[:6] = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), 1e-40, 65520.0])
    values = values.to(names[source])
    folder.mkdir()
    save_file({"a": values}, folder / "model.safetensors")
    layout = Layout(origin=ORIGIN, tensors=(TensorLayout("a", "a", stored),))
    result = load(str(folder), layout=lambda _: layout, pipeline=SMALL)
    assert result.error is None
    landed = torch.frombuffer(bytearray(result.tensor("a")), dtype=names[stored])
    expected = values.to(names[stored])
    nan = expected.isnan()
    assert torch.equal(landed.isnan(), nan)
    assert raw(landed[~nan]) == raw(expected[~nan])


def test_a_killed_loader_is_resumed_where_it_was(folder):
    """Another loader on the same arena fetches only what had not landed, and the result is bit-exact."""
    expected = random_shards(folder)

    def kill_half_way(child, message):
        landed = getattr(kill_half_way, "landed", 0) + (isinstance(message, LandedChunks))
        kill_half_way.landed = landed
        if landed == 20:
            child.process.send_signal(signal.SIGKILL)

    with BlobServer(folder, bytes_per_s=4e6) as server:
        cut = load(server.url, pipeline=SMALL, on_message=kill_half_way)
        assert cut.report is None
        assert 20 <= len(cut.landed_chunk_ids) < len(cut.plan.chunks)
        server.requests.clear()
        result = load(server.url, pipeline=SMALL, resume=cut)
        refetched = sum(request.end - request.start for request in server.requests)
    left = {chunk.chunk_id: chunk.end - chunk.start for chunk in cut.plan.chunks}
    for chunk_id in cut.landed_chunk_ids:
        del left[chunk_id]
    assert refetched == sum(left.values()) == result.report.fetched_bytes
    assert all(result.tensor(name) == raw(tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("etag", ["strong", "weak", "none"])
def test_a_blob_overwritten_between_header_and_range_is_refused(folder, etag):
    """Whatever ETag the source gives, two versions are never mixed."""
    random_shards(folder, megabytes=1)
    shard = folder / "model-00001.safetensors"

    def overwrite(_child, message):
        if isinstance(message, Planned):
            shard.write_bytes(shard.read_bytes() + b"x")

    with BlobServer(folder, etag=etag, bytes_per_s=2e6) as server:
        result = load(server.url, pipeline=SMALL, on_message=overwrite)
    assert result.report is None
    assert result.error.kind == "BlobChanged"
    assert result.error.exit_code == 3
    assert "model-00001.safetensors" in result.error.message


def test_a_body_that_ends_early_is_asked_for_again(folder):
    """A cut connection costs a retry, not the load."""
    expected = random_shards(folder, megabytes=1)
    cuts = iter([True, True, True])

    def cut(request):
        if request.end - request.start > 10_000 and request.path.endswith(".safetensors"):
            return Fault(cut_after_bytes=5_000) if next(cuts, False) else None
        return None

    with BlobServer(folder, hook=cut) as server:
        result = load(server.url, pipeline=SMALL, source=SourceOptions(max_retries=5))
    assert result.error is None
    assert all(result.tensor(name) == raw(tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("status", [500, 503])
def test_a_source_that_keeps_failing_is_named(folder, status):
    """After every retry the error names the blob and the status, and the loader's exit code is 3."""
    random_shards(folder, megabytes=1)

    def fail(request):
        return Fault(status=status) if request.path.endswith("2.safetensors") and request.start > 0 else None

    with BlobServer(folder, hook=fail) as server:
        result = load(server.url, pipeline=SMALL)
    assert result.error.kind == "SourceUnavailable"
    assert "model-00002.safetensors" in result.error.message
    assert str(status) in result.error.message


KEY = "c2VjcmV0LXNlY3JldA=="


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"uri": "az://nothing-here/x"}, "BlobNotFound", "check account, container and prefix"),
        ({"uri": "az://models/nothing"}, "BlobNotFound", "check account, container and prefix"),
        ({"account_key": KEY}, "AccessDenied", "Storage Blob Data Reader"),
        ({"sas_token": "sv=2021-08-06&sig=c2VjcmV0LXNlY3JldA%3D%3D"}, "AccessDenied", "Storage Blob Data Reader"),
        ({"credential": "anonymous"}, "AccessDenied|BlobNotFound", "az://models"),
        ({"endpoint": "http://127.0.0.1:9/devstoreaccount1"}, "SourceUnavailable", "az://models"),
    ],
)
def test_what_is_wrong_with_an_azure_source_is_said(azurite_source, pushed_demo, change, kind, message):
    """Wrong container, prefix, key, token, credential or host: one line, exit 3, no secret."""
    azure = {name: getattr(azurite_source.azure, name) for name in azurite_source.azure.__struct_fields__}
    options = SourceOptions(
        azure=AzureOptions(**azure | {name: value for name, value in change.items() if name != "uri"}),
        max_retries=1,
        retry_timeout_s=5,
        connect_timeout_s=2,
    )
    result = load(change.get("uri", pushed_demo), source=options)
    assert result.error is not None
    assert result.error.kind in kind.split("|")
    assert message in result.error.message
    assert result.error.exit_code == 3
    assert "c2VjcmV0" not in result.error.message
    assert "\n" not in result.error.message


def test_no_credential_at_all_is_said(monkeypatch):
    """Without any credential the error says what to set, quickly and without a probe of the network."""
    monkeypatch.setenv("PATH", "/nonexistent")
    options = SourceOptions(azure=AzureOptions(account_name="nobody"), max_retries=0)
    result = load("az://models/x", source=options)
    assert result.error.kind == "AccessDenied"
    assert "AZURE_STORAGE_SAS_TOKEN" in result.error.message


@pytest.mark.parametrize(
    ("break_it", "kind", "message"),
    [
        (lambda f: [path.unlink() for path in f.glob("*.safetensors*")], "CheckpointError", "no other .safetensors"),
        (lambda f: (f / "two.safetensors").unlink(), "CheckpointError", "names two.safetensors"),
        (
            lambda f: (f / "two.safetensors").write_bytes((f / "two.safetensors").read_bytes()[:-1]),
            "CheckpointError",
            "two.safetensors: truncated",
        ),
        (lambda f: (f / "one.safetensors").write_bytes(b"\xff" * 64), "CheckpointError", "one.safetensors"),
        (lambda f: (f / "one.safetensors").write_bytes(b""), "CheckpointError", "one.safetensors"),
        (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "CheckpointError", "weight_map"),
    ],
)
@pytest.mark.parametrize("remote", [False, True])
def test_broken_checkpoints_are_refused_by_name(folder, break_it, kind, message, remote):
    """A checkpoint that is not whole ends the load before a weight moves, with exit 4."""
    write_checkpoint(
        folder, {"one.safetensors": {"a": ("U8", (3,), b"abc")}, "two.safetensors": {"b": ("F32", (1,), bytes(4))}}
    )
    (folder / "config.json").write_text("{}")
    break_it(folder)
    with BlobServer(folder) as server:
        result = load(server.url if remote else str(folder))
    assert (result.error.kind, result.error.exit_code) == (kind, 4)
    assert message in result.error.message
    assert result.plan is None


def test_a_missing_folder_is_said():
    """A path that is not there is the source's error."""
    assert load("/nonexistent/model").error.kind == "BlobNotFound"


def test_memory_does_not_grow_with_the_model(tmp_path):
    """The loader's peak resident memory is bounded by its lanes, for a model four times as large, too."""
    pipeline = PipelineOptions(lanes=4, chunk_bytes=4 << 20)
    bound = pipeline.lanes * 2 * pipeline.chunk_bytes + (100 << 20)
    peaks = []
    for megabytes in (64, 256):
        path = tmp_path / str(megabytes)
        path.mkdir()
        elements = megabytes << 18
        save_file({"a": torch.zeros(elements)}, path / "model.safetensors")
        with BlobServer(path) as server:
            result = load(server.url, pipeline=pipeline)
        assert result.error is None
        peaks.append(result.max_resident_bytes)
    print("peak resident bytes:", peaks)
    assert max(peaks) <= bound
    assert peaks[1] - peaks[0] < 32 << 20


def test_a_loader_whose_server_dies_goes_too(folder):
    """Closing the socket ends the load; nobody wants the bytes."""
    random_shards(folder, megabytes=1)
    with BlobServer(folder, bytes_per_s=1e5) as server:
        started = []

        def hang_up(child, message):
            if isinstance(message, Planned):
                started.append(child)
                child.sock.shutdown(2)

        result = load(server.url, pipeline=SMALL, on_message=hang_up)
    assert result.report is None
    assert not Path(f"/proc/{started[0].process.pid}").exists()


def test_arena_is_shared_memory_that_outlives_its_loader(folder):
    """The descriptor alone keeps the weights: the process that wrote them is gone."""
    random_shards(folder, megabytes=1)
    result = load(str(folder))
    assert str(Path(f"/proc/self/fd/{result.fd}").readlink()).startswith("/memfd:coldstream-arena")
    assert os.fstat(result.fd).st_size == result.plan.arena_bytes
