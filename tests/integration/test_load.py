"""The loader process against real sources: bit-exact, typed in failure, bounded in memory, resumable."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from streaming.messages import LandedChunks, Layout, Planned, TensorLayout
from streaming.options import PipelineOptions
from streaming.upload import push
from tests.checkpoints import SMALL, random_shards, raw
from tests.loader import ORIGIN, load
from tests.unit.checkpoints import shard_bytes
from tools.blob_server import BlobServer


def test_every_dtype_lands_bit_equal_through_azurite(folder, azurite_source):
    """Tensors streamed from a container equal what safetensors itself loads from disk, bit for bit."""
    expected = random_shards(folder, megabytes=24)  # with the manifest a read is a whole block
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


@pytest.mark.parametrize("stored", ["F32", "BF16"])
def test_memory_does_not_grow_with_the_model(tmp_path, stored):
    """Peak resident memory is bounded by the lanes, for a model four times as large and with a cast, too."""
    pipeline = PipelineOptions(lanes=4, chunk_bytes=4 << 20)
    held = pipeline.chunks_held - 2 * pipeline.writers  # those are a GPU's
    bound = held * pipeline.chunk_bytes + (100 << 20)
    peaks = []
    for megabytes in (48, 192):
        path = tmp_path / str(megabytes)
        path.mkdir()
        elements = megabytes << 18
        save_file({"a": torch.zeros(elements)}, path / "model.safetensors")
        with BlobServer(path) as server:
            layout = Layout(origin=ORIGIN, tensors=(TensorLayout("a", "a", stored),))
            result = load(server.url, pipeline=pipeline, layout=lambda _, layout=layout: layout)
        assert result.error is None
        peaks.append(result.max_resident_bytes)
    print("peak resident bytes:", peaks)
    assert max(peaks) <= bound
    assert peaks[1] - peaks[0] < 32 << 20


def test_a_loader_whose_server_dies_goes_too(folder):
    """Closing the socket ends the load; nobody wants the bytes."""
    random_shards(folder, megabytes=1)
    with BlobServer(folder, bytes_per_s=4e5) as server:
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
