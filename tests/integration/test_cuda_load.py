"""The loader's GPU path with a driver that is host memory: every byte, and every way in which a GPU refuses."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streaming.messages import Described, LandedChunks, Layout, TensorLayout
from streaming.options import DestinationOptions, PipelineOptions
from tests.checkpoints import SMALL, random_shards, raw
from tests.loader import Load, as_stored, load
from tests.unit.checkpoints import data_bytes, write_checkpoint

FAKE = str(Path(__file__).parents[1] / "fake_driver")
CUDA = DestinationOptions(device="cuda")
NO_FALLBACK = DestinationOptions(device="cuda", host_fallback=False)


def cuda_load(folder: Path, *, destination: DestinationOptions = CUDA, **options) -> Load:
    """Load onto the fake GPU; `fail`, `attributes`, `free_bytes` and `gpus` describe it."""
    fake = {name: options.pop(name) for name in ("fail", "attributes", "free_bytes", "gpus") if name in options}
    environ = {"PYTHONPATH": FAKE, "FAKE_CUDA": json.dumps(fake)}
    options.setdefault("pipeline", SMALL)
    return load(str(folder), destination=destination, environ=environ, **options)


def test_every_byte_lands_in_device_memory(folder):
    """All dtypes, odd sizes, scalars and empty tensors are bit-equal to safetensors' own load."""
    tensors = random_shards(folder)
    result = cuda_load(folder)
    assert result.error is None
    assert result.memory.kind == "device"
    assert result.memory.nbytes % (2 << 20) == 0
    assert {name: result.tensor(name) for name in tensors} == {name: raw(t) for name, t in tensors.items()}
    assert sorted(result.landed_chunk_ids) == [chunk.chunk_id for chunk in result.plan.chunks]
    assert result.fallbacks == []


@pytest.mark.parametrize(("source", "stored"), [("F32", "BF16"), ("BF16", "F32")])
def test_casts_happen_in_the_slot(folder, source, stored):
    """A cast that doubles or halves a chunk lands as the host arena has it."""
    random_shards(folder)

    def cast(described: Described) -> Layout:
        tensors = tuple(
            TensorLayout(entry.name, entry.name, stored if entry.dtype == source else entry.dtype)
            for entry in described.entries
        )
        return Layout(origin=described.origin, tensors=tensors)

    on_gpu, on_host = cuda_load(folder, layout=cast), load(str(folder), layout=cast, pipeline=SMALL)
    names = on_host.plan.extents
    assert {name: on_gpu.tensor(name) for name in names} == {name: on_host.tensor(name) for name in names}


def test_a_dead_loader_is_followed_by_one_on_the_same_gpu_memory(folder):
    """Another loader imports the exported memory and fetches only what had not landed."""
    tensors = random_shards(folder)

    def kill(child, message):
        if isinstance(message, LandedChunks):
            kill.landed += 1
            if kill.landed == 10:
                child.process.send_signal(signal.SIGKILL)

    kill.landed = 0
    cut = cuda_load(folder, on_message=kill)
    assert cut.report is None
    result = cuda_load(folder, resume=cut)
    assert result.error is None
    assert result.report.fetched_bytes < result.plan.fetch_bytes
    assert {name: result.tensor(name) for name in tensors} == {name: raw(t) for name, t in tensors.items()}


@pytest.mark.parametrize(
    ("gpu", "reason"),
    [
        ({"attributes": {"COMPUTE_MODE": 3}}, "EXCLUSIVE_PROCESS"),
        ({"attributes": {"VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED": 0}}, "no virtual memory management"),
        ({"attributes": {"HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED": 0}}, "cannot be exported"),
        ({"fail": {"cuMemCreate": "CUDA_ERROR_NOT_PERMITTED"}}, "CUDA_ERROR_NOT_PERMITTED"),
        ({"fail": {"cuMemExportToShareableHandle": "CUDA_ERROR_NOT_SUPPORTED"}}, "CUDA_ERROR_NOT_SUPPORTED"),
    ],
)
def test_memory_that_cannot_be_shared_falls_back_to_the_host(folder, gpu, reason):
    """The weights land in a host arena, and why is said; where that is not allowed it is an error."""
    tensors = random_shards(folder, megabytes=1)
    result = cuda_load(folder, **gpu)
    assert result.memory.kind == "host"
    assert all(result.tensor(name) == raw(tensor) for name, tensor in tensors.items())
    assert [(fallback.what, reason in fallback.reason) for fallback in result.fallbacks] == [("host-arena", True)]
    refused = cuda_load(folder, destination=NO_FALLBACK, **gpu)
    assert refused.error.kind == "DeviceError"
    assert reason in refused.error.message
    assert refused.plan is None


def test_memory_that_cannot_be_pinned_is_used_as_it_is(folder):
    """Eight lanes that cannot pin say so once; where that is not allowed it is an error."""
    tensors = random_shards(folder, megabytes=1)
    gpu = {"fail": {"cuMemHostRegister": "CUDA_ERROR_OUT_OF_MEMORY"}}
    result = cuda_load(folder, **gpu)
    assert result.memory.kind == "device"
    assert all(result.tensor(name) == raw(tensor) for name, tensor in tensors.items())
    assert [(fallback.what, "ulimit -l" in fallback.reason) for fallback in result.fallbacks] == [
        ("pageable-slots", True)
    ]
    refused = cuda_load(folder, destination=NO_FALLBACK, **gpu)
    assert (refused.error.kind, refused.report) == ("DeviceError", None)


@pytest.mark.parametrize(
    ("gpu", "words"),
    [
        ({"fail": {"cuInit": "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"}}, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"),
        ({"fail": {"cuInit": "CUDA_ERROR_NO_DEVICE"}}, "CUDA_ERROR_NO_DEVICE"),
        ({"gpus": 0}, "CUDA_VISIBLE_DEVICES"),
        ({"fail": {"cuDevicePrimaryCtxRetain": "CUDA_ERROR_OUT_OF_MEMORY"}}, "cuDevicePrimaryCtxRetain"),
        ({"fail": {"cuMemMap": "CUDA_ERROR_INVALID_VALUE"}}, "cuMemMap"),
        ({"fail": {"cuMemcpyHtoDAsync": "CUDA_ERROR_ILLEGAL_ADDRESS"}}, "cuMemcpyHtoDAsync"),
        ({"fail": {"cuEventSynchronize": "CUDA_ERROR_ECC_UNCORRECTABLE"}}, "ECC_UNCORRECTABLE"),
    ],
)
def test_a_gpu_that_fails_is_a_device_error(folder, gpu, words):
    """Every failure of the driver ends the load with one line that names it."""
    random_shards(folder, megabytes=1)
    result = cuda_load(folder, **gpu)
    assert result.error.exit_code == 5
    assert words in result.error.message
    assert result.report is None


def test_without_a_driver_there_is_no_cuda(folder):
    """The real cuda-bindings on a machine without a driver: one line, not a traceback."""
    random_shards(folder, megabytes=1)
    result = load(str(folder), destination=CUDA, environ={"CUDA_VISIBLE_DEVICES": ""})
    assert result.error.kind == "DeviceError"
    assert "--device cpu" in result.error.message


def test_weights_that_do_not_fit_move_no_byte(folder):
    """Weights x 1.1 and the reserve against what is free: the error has all three numbers, nothing is fetched."""
    random_shards(folder, megabytes=1)

    def reserving(described: Described) -> Layout:
        return msgspec.structs.replace(as_stored(described), reserve_bytes=1000)

    fitting = cuda_load(folder, layout=reserving)
    needed_bytes = int(fitting.plan.arena_bytes * 1.1) + 1000
    assert cuda_load(folder, layout=reserving, free_bytes=needed_bytes).error is None
    result = cuda_load(folder, layout=reserving, free_bytes=needed_bytes - 1)
    assert result.error.kind == "DeviceError"
    assert (result.plan, result.landed_chunk_ids) == (None, [])
    for words in (f"{needed_bytes - 1} bytes free", f"needs {needed_bytes}", "1 short"):
        assert words in result.error.message


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_chunking_lands_every_byte(tmp_path_factory, data):
    """Whatever the tensors, the lanes and the chunks are, each byte is at its address."""
    folder = tmp_path_factory.mktemp("any") / "checkpoint"
    shapes = st.lists(st.lists(st.integers(0, 40), max_size=3), min_size=1, max_size=12)
    dtypes = st.sampled_from(["U8", "BF16", "F32", "F64"])
    shards, expected = {}, {}
    for number, drawn in enumerate(data.draw(st.lists(shapes, min_size=1, max_size=3))):
        tensors = {}
        for place, shape in enumerate(drawn):
            dtype = data.draw(dtypes)
            content = os.urandom(data_bytes(dtype, tuple(shape)))
            tensors[f"{number}.{place}"] = (dtype, tuple(shape), content)
            expected[f"{number}.{place}"] = content
        shards[f"model-{number}.safetensors"] = tensors
    write_checkpoint(folder, shards)
    pipeline = PipelineOptions(
        lanes=data.draw(st.integers(1, 4)), chunk_bytes=data.draw(st.sampled_from([64, 1000, 1 << 16]))
    )
    result = cuda_load(folder, pipeline=pipeline)
    assert result.error is None
    assert {name: result.tensor(name) for name in expected} == expected
