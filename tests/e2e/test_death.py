"""Who dies takes nobody's weights along and leaves nobody behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from app.model_support import support
from streaming.describe import describe
from streaming.messages import Origin
from streaming.options import SourceOptions
from streaming.plan import plan_load
from streaming.retrying import open_retrying
from tests.coldstream import ROOT, alive, serving, wait_for, weight_bytes
from tools.blob_server import BlobServer

PROMPT = "The capital of France is"


def test_kill_9_of_the_loader_mid_load(demo_model_dir, tmp_path):
    """The load resumes on the same arena, bit-exact, and fetches only what had not landed."""
    lanes, chunk_bytes = 4, 4 << 20
    flags = ("--concurrency", str(lanes), "--chunk-mib", "4", "--hedge-budget-ratio", "0")
    with (
        BlobServer(demo_model_dir, bytes_per_s=60e6) as source,
        serving(source.url, *flags, log_path=tmp_path / "log") as server,
    ):
        wait_for(lambda: weight_bytes(source) > 60e6)
        arena = arena_fd(server.pid)
        server.child("streaming").kill()
        server.wait_ready()
        answer = server.complete(PROMPT, max_tokens=5)
        assert arena_fd(server.pid) == arena
        compare_arena(server.pid, arena, demo_model_dir, chunk_bytes)
        log = server.log()
        total = server.health()[1]["bytes_total"]
    assert "Paris" in answer["choices"][0]["text"]
    assert log.count("restarting the load for the") == 1
    assert f"shards, {total} bytes, {source.url} -> cpu" in log
    # Twice over the wire: at most what every lane had in flight when the loader died, and what as many chunks that had come waited for.
    assert total <= weight_bytes(source) <= total + 2 * lanes * chunk_bytes


def arena_fd(pid: int) -> int:
    """The server's descriptor of the arena."""
    folder = Path(f"/proc/{pid}/fd")
    (fd,) = wait_for(lambda: [int(p.name) for p in folder.iterdir() if "coldstream-arena" in str(p.readlink())])
    return fd


def compare_arena(pid: int, fd: int, folder: Path, chunk_bytes: int) -> None:
    """Every tensor in the server's arena equals what safetensors loads from the folder."""
    found = describe(open_retrying(str(folder), SourceOptions()))
    layout = support(found.files, found.entries).layout(Origin(arena_id="x"))
    plan = plan_load(found.entries, found.versions, layout, chunk_bytes=chunk_bytes)
    expected = {name: t for shard in folder.glob("*.safetensors") for name, t in load_file(shard).items()}
    with Path(f"/proc/{pid}/fd/{fd}").open("rb") as arena:
        for tensor in layout.tensors:
            extent = plan.extents[tensor.stored_name]
            arena.seek(extent.start)
            import torch

            data = torch.frombuffer(bytearray(arena.read(extent.nbytes)), dtype=torch.uint8)
            assert torch.equal(data, expected[tensor.source_name].contiguous().view(torch.uint8).flatten()), tensor


def test_kill_9_of_the_engine(demo_model_dir, tmp_path):
    """Its request fails with an error, the next is answered the same by another engine, no byte is fetched."""
    with (
        BlobServer(demo_model_dir) as source,
        serving(source.url, log_path=tmp_path / "log") as server,
    ):
        server.wait_ready()
        before = server.complete(PROMPT, max_tokens=8)["choices"]
        fetched = len(source.requests)
        body = {"model": "m", "prompt": PROMPT, "max_tokens": 400, "ignore_eos": True, "stream": True}
        with server.client.stream("POST", "/v1/completions", json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            server.child("app.engine").kill()
            rest = [line for line in lines if line]
        assert "error" in rest[-1]
        assert "data: [DONE]" not in rest
        wait_for(lambda: server.health()[0] == 503)
        assert server.health()[1]["state"] == "warming"
        server.wait_ready()
        assert server.complete(PROMPT, max_tokens=8)["choices"] == before
        assert len(source.requests) == fetched
        assert len(server.family()) == 1


@pytest.mark.parametrize("moment", ["at once", "while loading", "when ready"])
def test_sigterm_ends_everything_with_0(demo_model_dir, tmp_path, moment):
    """A gentle stop leaves no process and says so with its exit code."""
    with (
        BlobServer(demo_model_dir, bytes_per_s=20e6 if moment == "while loading" else None) as source,
        serving(source.url, log_path=tmp_path / "log") as server,
    ):
        if moment == "when ready":
            server.wait_ready()
        elif moment == "while loading":
            wait_for(lambda: weight_bytes(source) > 1e6)
        else:
            wait_for(lambda: server.family())
        family = server.family()
        assert family
        os.kill(server.pid, signal.SIGTERM)
        _, status = os.waitpid(server.pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        # The kernel ends them with the server, which is not the very same moment.
        wait_for(lambda: not any(alive(child) for child in family), 2)


def test_a_drain_lets_streams_finish_and_tells_probes(demo_model_dir, tmp_path):
    """After SIGTERM /health is 503, new requests are refused, and a stream in flight ends as it should."""
    with serving(str(demo_model_dir), log_path=tmp_path / "log") as server:
        server.wait_ready()
        body = {"model": "m", "prompt": "Count:", "max_tokens": 60, "ignore_eos": True, "stream": True}
        with server.client.stream("POST", "/v1/completions", json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            os.kill(server.pid, signal.SIGTERM)
            wait_for(lambda: server.health()[0] == 503)
            assert server.health()[1]["state"] == "draining"
            refused = server.client.post("/v1/completions", json={"model": "m", "prompt": "x"})
            rest = [line for line in lines if line]
        _, status = os.waitpid(server.pid, 0)
        log = server.log()
    assert refused.status_code == 503
    assert rest[-1] == "data: [DONE]"
    assert os.waitstatus_to_exitcode(status) == 0
    assert "Traceback" not in log


def test_a_drain_that_takes_too_long_ends_streams_with_an_error(demo_model_dir, tmp_path):
    """What is left after --drain-timeout gets an error event and no [DONE]."""
    with serving(str(demo_model_dir), "--drain-timeout", "1", log_path=tmp_path / "log") as server:
        server.wait_ready()
        body = {"model": "m", "prompt": "Count:", "max_tokens": 4000, "ignore_eos": True, "stream": True}
        with server.client.stream("POST", "/v1/completions", json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            os.kill(server.pid, signal.SIGTERM)
            rest = [line for line in lines if line]
        _, status = os.waitpid(server.pid, 0)
        log = server.log()
    assert "shutting down" in rest[-1]
    assert "data: [DONE]" not in rest
    assert os.waitstatus_to_exitcode(status) == 0
    assert "Traceback" not in log


HASTE = """
import sys
from app.engine.torch_import import TorchImport
usual = TorchImport.wait_for_core
def wait_for_core(self, *, on_gpu):
    if self._stop in sys.meta_path:
        raise AttributeError("a part of torch that is not there yet")
    usual(self, on_gpu=on_gpu)
TorchImport.wait_for_core = wait_for_core
"""


def test_an_engine_that_dies_of_its_haste_is_followed_by_a_patient_one(demo_model_dir, tmp_path):
    """Where torch's core does not suffice, the next engine waits for all of torch, and serves."""
    (tmp_path / "sitecustomize.py").write_text(HASTE)
    environ = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    with serving(str(demo_model_dir), log_path=tmp_path / "log", environ=environ) as server:
        server.wait_ready()
        assert server.complete("The capital of France is", max_tokens=2)["choices"][0]["text"]
        assert server.log().count("app.engine died") == 1
