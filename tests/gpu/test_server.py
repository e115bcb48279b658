"""The whole server on a GPU: what it answers, what it leaves behind, and what it does where the GPU refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from streaming.clock import boottime_s, exec_time_s
from tests.coldstream import ROOT, Server, serving, wait_for
from tests.gpu.conftest import gpu_process_count, gpu_used_mib
from tests.unit.test_metrics import ONLY_A_GPU_CAN, samples
from tools.blob_server import BlobServer

pytestmark = pytest.mark.gpu

# What a GPU that works does not do by itself, done to the processes that a test starts.
REFUSALS = {
    "host-arena": "cuda_driver.Cuda.obstacle = lambda self: 'a test says so'",
    "pageable-slots": "def register(self, address, nbytes):\n"
    "    raise cuda_driver.CudaError('cuMemHostRegister', 'CUDA_ERROR_OUT_OF_MEMORY')\n"
    "cuda_driver.Cuda.register = register",
}


# What a GPU with room to spare does not meet: an allocation that fails, beside every report of its memory.
NO_ROOM = """

from app.engine import device_memory
usual = device_memory.DeviceMemory.use
def use(self):
    import torch
    try:
        torch.empty(1 << 40, dtype=torch.uint8, device="cuda")
    except torch.OutOfMemoryError:
        pass
    return usual(self)
device_memory.DeviceMemory.use = use
"""


def text_of(folder: Path, token_id: int) -> str:
    """The text of one token."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json")).decode([token_id])


def answer(server: Server, prompt: list[int], max_tokens: int = 1) -> str:
    """A greedy completion."""
    text: str = server.complete(prompt, max_tokens=max_tokens)["choices"][0]["text"]
    return text


def refusing(tmp_path: Path, *names: str) -> dict[str, str]:
    """An environment whose Python processes meet these refusals."""
    code = "from streaming import cuda_driver\n" + "\n".join(REFUSALS[name] for name in names)
    (tmp_path / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])}


def test_the_planted_token_is_answered(planted, tmp_path):
    """From bytes over HTTP to a token, on memory that only the engine has a context on."""
    folder, prompt, token_id = planted
    before_mib, before_processes = gpu_used_mib(), gpu_process_count()  # this very process may be one of them
    with BlobServer(folder) as source, serving(source.url, "--device", "cuda", log_path=tmp_path / "log") as server:
        server.wait_ready()
        assert answer(server, prompt) == text_of(folder, token_id)
        assert gpu_process_count() == before_processes + 1
        assert server.client.get("/startupz").json()["fallbacks"] == []
        os.kill(server.pid, signal.SIGTERM)
        os.waitpid(server.pid, 0)
    wait_for(lambda: gpu_used_mib() == before_mib)


def test_metrics_tell_of_the_gpus_memory(planted, tmp_path):
    """Used and peak within the whole, the allocator within what is used, and two moments of the start."""
    folder, prompt, _ = planted
    with serving(str(folder), "--device", "cuda", log_path=tmp_path / "log") as server:
        server.wait_ready()
        answer(server, prompt)
        found = wait_for(lambda: gpu_samples(server))
    used, peak, whole = (found[f"coldstream_gpu_memory_{name}"][""] for name in ("used_bytes", "peak_bytes", "bytes"))
    assert 0 < used <= peak <= whole
    allocated, reserved = (found[f"coldstream_gpu_allocator_{name}_bytes"][""] for name in ("allocated", "reserved"))
    assert 0 < allocated <= reserved < used
    at = found["coldstream_startup_gpu_memory_used_bytes"]
    assert 0 < at["at=weights_landed"] <= at["at=ready"] <= peak
    assert (
        found["coldstream_gpu_allocation_retries_total"] == found["coldstream_gpu_allocation_failures_total"] == {"": 0}
    )


def test_every_metric_that_only_a_gpu_can_drive_is_driven(planted, tmp_path):
    """The list that a CPU leaves out: slots that cannot be pinned, and allocations that fail."""
    folder, prompt, _ = planted
    environ = refusing(tmp_path, "pageable-slots")
    with (tmp_path / "sitecustomize.py").open("a") as code:
        code.write(NO_ROOM)
    with serving(str(folder), "--device", "cuda", log_path=tmp_path / "log", environ=environ) as server:
        server.wait_ready()
        answer(server, prompt)
        found = wait_for(lambda: gpu_samples(server))
    assert {name for name in ONLY_A_GPU_CAN if any(found[name].values())} == ONLY_A_GPU_CAN


def gpu_samples(server: Server) -> dict[str, dict[str, float]] | None:
    """A scrape that has the engine's own figures."""
    found = samples(server.client.get("/metrics").text)
    return found if "coldstream_gpu_memory_used_bytes" in found else None


def test_kill_9_of_everything_leaves_no_gpu_memory(planted, tmp_path):
    """The kernel closes the last descriptor, the driver frees the arena."""
    folder, prompt, _ = planted
    before_mib = gpu_used_mib()
    with serving(str(folder), "--device", "cuda", log_path=tmp_path / "log") as server:
        server.wait_ready()
        answer(server, prompt)
        assert gpu_used_mib() > before_mib
        family = server.family()
        os.kill(server.pid, signal.SIGKILL)
        psutil.wait_procs(family, timeout=5)
    wait_for(lambda: gpu_used_mib() == before_mib)


def test_a_killed_engine_comes_back_without_a_byte(planted, tmp_path, capsys):
    """The same tokens from the same memory; the source is gone by then."""
    folder, prompt, _ = planted
    with BlobServer(folder) as source:
        flags = ("--device", "cuda")
        with serving(source.url, *flags, log_path=tmp_path / "log") as server:
            server.wait_ready()
            expected = answer(server, prompt, 20)
            source.requests.clear()
            killed_s = time.monotonic()
            server.child("app.engine").kill()
            wait_for(lambda: server.health()[0] == 503)
            server.wait_ready()
            assert answer(server, prompt, 20) == expected
            with capsys.disabled():
                print(f"\nengine back after kill -9: {time.monotonic() - killed_s:.2f} s")
            assert list(source.requests) == []


@pytest.mark.parametrize("refusals", [("host-arena",), ("pageable-slots",), ("host-arena", "pageable-slots")])
def test_every_fallback_serves_the_same_token_and_says_why(planted, tmp_path, refusals):
    """Host arena or pageable memory, the weights arrive; /startupz and the log name what was done instead."""
    folder, prompt, token_id = planted
    environ = refusing(tmp_path, *refusals)
    with serving(str(folder), "--device", "cuda", log_path=tmp_path / "log", environ=environ) as server:
        server.wait_ready()
        assert answer(server, prompt) == text_of(folder, token_id)
        fallbacks = server.client.get("/startupz").json()["fallbacks"]
        expected = {
            ("host-arena",): ["host-arena"],
            ("pageable-slots",): ["pageable-slots"],
            ("host-arena", "pageable-slots"): ["host-arena", "pageable-arena"],
        }[refusals]
        assert [fallback["what"] for fallback in fallbacks] == expected
        assert all(f"fell back to {what}" in server.log() for what in expected)


def refused(folder: Path, *flags: str, environ: dict[str, str] | None = None) -> tuple[int, str, float]:
    """Exit code, standard error and seconds from exec to exit of a server that cannot start."""
    command = [sys.executable, "-P", "-m", "app", "serve", str(folder), "--device", "cuda", "--port", "0", *flags]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, **(environ or {})}, cwd=ROOT
    )
    exec_s = exec_time_s(process.pid)
    _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr, boottime_s() - exec_s


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_fallback_that_is_not_allowed_is_an_error(planted, tmp_path, refusal):
    """--no-host-fallback turns every fallback into a DeviceError with the same reason."""
    code, stderr, _ = refused(planted[0], "--no-host-fallback", environ=refusing(tmp_path, refusal))
    assert code == 5
    assert "DeviceError" in stderr


def test_too_little_room_is_said_before_a_byte_moves(planted, capsys):
    """Needed, free and the shortfall."""
    code, stderr, seconds = refused(planted[0], "--kv-cache-memory-bytes", "500G")
    with capsys.disabled():
        print(f"\nno room, from exec to exit: {seconds:.2f} s")
    assert code == 5
    for words in ("bytes free", "needs", "short"):
        assert words in stderr


def test_host_staging_serves_the_same_token(planted, tmp_path):
    """The baseline loads from disk with safetensors, onto the same GPU."""
    folder, prompt, token_id = planted
    flags = ("--device", "cuda", "--load-strategy", "host-staging")
    with serving(str(folder), *flags, log_path=tmp_path / "log") as server:
        server.wait_ready()
        assert answer(server, prompt) == text_of(folder, token_id)
        assert "to cuda" in server.log()
