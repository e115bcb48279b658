"""Every byte on the GPU is safetensors' own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from app.engine.weights import in_place_on_gpu
from streaming.cuda_driver import Cuda
from streaming.messages import Described, Group, Layout, TensorLayout
from streaming.options import DestinationOptions, PipelineOptions
from tests.checkpoints import SMALL, random_shards, write_index
from tests.loader import ORIGIN, Load, load

pytestmark = pytest.mark.gpu
CUDA = DestinationOptions(device="cuda", host_fallback=False)
# NumPy and torch have no common word for some of them, so that all are compared as bytes.
DTYPES = [torch.bool, torch.uint8, torch.int16, torch.int64, torch.float16, torch.bfloat16, torch.float32,
          torch.float64, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64]  # fmt: skip


@pytest.fixture(scope="module")
def cuda() -> Cuda:
    torch.zeros(1, device="cuda")
    cuda = Cuda.find()
    cuda.start()
    return cuda


def arena(cuda: Cuda, loaded: Load) -> torch.Tensor:
    """The arena of a load whose loader is gone, mapped here, (nbytes,) uint8 on the GPU."""
    assert loaded.error is None
    assert loaded.memory.kind == "device"
    address = cuda.map(cuda.import_exported(loaded.fd), loaded.memory.nbytes, writable=False)
    return in_place_on_gpu(address, loaded.memory.nbytes).flat


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().flatten().view(torch.uint8) if tensor.numel() else torch.empty(0, dtype=torch.uint8)


def assert_equal(flat: torch.Tensor, loaded: Load, expected: dict[str, torch.Tensor]) -> None:
    for name, tensor in expected.items():
        extent = loaded.plan.extents[name]
        landed = flat[extent.start : extent.start + extent.nbytes].cpu()
        assert torch.equal(landed, bytes_of(tensor)), name


def test_every_dtype_is_bit_equal(cuda, folder):
    """Three shards of every dtype, odd sizes, scalars and empty tensors."""
    expected = random_shards(folder)
    loaded = load(str(folder), pipeline=SMALL, destination=CUDA)
    assert_equal(arena(cuda, loaded), loaded, expected)
    assert loaded.fallbacks == []


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_checkpoints_are_bit_equal(cuda, tmp_path_factory, data):
    """Ten checkpoints of hypothesis' making: any dtype, any shape, unevenly sharded, any lanes and chunks."""
    folder = tmp_path_factory.mktemp("random")
    weight_map, expected = {}, {}
    for number in range(data.draw(st.integers(1, 4))):
        shard, tensors = f"model-{number}.safetensors", {}
        for place in range(data.draw(st.integers(1, 30))):
            dtype = data.draw(st.sampled_from(DTYPES))
            shape = data.draw(st.lists(st.integers(0, 129), max_size=3))
            count = int(torch.tensor(shape, dtype=torch.long).prod()) * dtype.itemsize
            content = torch.randint(0, 2 if dtype is torch.bool else 256, (count,), dtype=torch.uint8)
            tensors[f"{number}.{place}"] = content.view(dtype).reshape(shape)
        save_file(tensors, folder / shard)
        weight_map |= dict.fromkeys(tensors, shard)
        expected |= load_file(folder / shard)
    write_index(folder, weight_map)
    (folder / "config.json").write_text("{}")
    pipeline = PipelineOptions(
        lanes=data.draw(st.integers(1, 9)), chunk_bytes=data.draw(st.sampled_from([4096, 100_000, 1 << 22]))
    )
    loaded = load(str(folder), pipeline=pipeline, destination=CUDA)
    assert_equal(arena(cuda, loaded), loaded, expected)
    os.close(os.dup(loaded.fd))


@pytest.mark.parametrize(
    ("source", "stored"), [(torch.float32, "BF16"), (torch.bfloat16, "F32"), (torch.float32, "F16")]
)
def test_casts_are_torchs(cuda, folder, source, stored):
    """A float32 checkpoint is served as bfloat16, and so on: cast in the slot, bit for bit as torch casts."""
    folder.mkdir()
    values = (torch.randn(3_000_001, dtype=torch.float64) * 1e3).to(source)
    save_file({"a": values, "scale": torch.tensor(0.5, dtype=source)}, folder / "model.safetensors")
    layout = Layout(origin=ORIGIN, tensors=(TensorLayout("a", "a", stored), TensorLayout("scale", "scale", stored)))
    loaded = load(str(folder), pipeline=SMALL, layout=lambda _: layout, destination=CUDA)
    target = {"BF16": torch.bfloat16, "F32": torch.float32, "F16": torch.float16}[stored]
    expected = {"a": values.to(target), "scale": torch.tensor(0.5, dtype=target)}
    assert_equal(arena(cuda, loaded), loaded, expected)


def test_groups_are_one_matrix(cuda, folder):
    """Members of a group, experts among them, lie side by side in their order, whatever shard each comes from."""
    folder.mkdir()
    experts = {f"experts.{number}": torch.randn(5 + number, 7).to(torch.bfloat16) for number in range(6)}
    shards = {f"model-{part}.safetensors": dict(list(experts.items())[part::2]) for part in range(2)}
    for shard, content in shards.items():
        save_file(content, folder / shard)
    write_index(folder, {name: shard for shard, content in shards.items() for name in content})

    def grouped(described: Described) -> Layout:
        tensors = tuple(TensorLayout(entry.name, entry.name, entry.dtype) for entry in described.entries)
        return Layout(origin=ORIGIN, tensors=tensors, groups=(Group("experts", tuple(experts)),))

    loaded = load(str(folder), pipeline=SMALL, layout=grouped, destination=CUDA)
    assert loaded.plan.extents["experts"].start % 256 == 0
    assert_equal(arena(cuda, loaded), loaded, experts | {"experts": torch.cat(list(experts.values()))})


def test_a_tensor_of_more_than_two_gib(cuda, folder):
    """Offsets beyond 32 bits: the ends and the middle of a 2.4 GB tensor."""
    folder.mkdir()
    big = torch.zeros(1_200_000_001, dtype=torch.bfloat16)
    for at in (0, 1 << 30, 1_200_000_000):
        big[at] = 1.5
    save_file({"big": big}, folder / "model.safetensors")
    loaded = load(str(folder), pipeline=PipelineOptions(), destination=CUDA)
    extent = loaded.plan.extents["big"]
    landed = arena(cuda, loaded)[extent.start : extent.start + extent.nbytes].view(torch.bfloat16)
    assert landed.nonzero().flatten().tolist() == [0, 1 << 30, 1_200_000_000]


def test_a_killed_loader_is_followed_by_one_on_the_same_memory(cuda, folder):
    """The exported memory survives its maker; only what had not landed is fetched."""
    expected = random_shards(folder, megabytes=30)

    def kill(child, message):
        kill.messages += 1
        if kill.messages == 40:
            child.process.kill()

    kill.messages = 0
    cut = load(str(folder), pipeline=SMALL, destination=CUDA, on_message=kill)
    assert cut.report is None
    loaded = load(str(folder), pipeline=SMALL, destination=CUDA, resume=cut)
    assert loaded.report.fetched_bytes < loaded.plan.fetch_bytes
    assert_equal(arena(cuda, loaded), loaded, expected)


def test_the_engines_mapping_cannot_be_written(cuda, folder):
    """The loader is the only writer: the driver refuses a copy into a mapping made for reading."""
    random_shards(Path(folder), megabytes=1)
    loaded = load(str(folder), pipeline=SMALL, destination=CUDA)
    address = cuda.map(cuda.import_exported(loaded.fd), loaded.memory.nbytes, writable=False)
    stream = cuda.new_stream()
    with pytest.raises(Exception, match="cuMemcpyHtoDAsync"):
        cuda.copy_to_device(address, torch.zeros(16, dtype=torch.uint8).data_ptr(), 16, stream)
