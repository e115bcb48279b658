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
from tests.coldstream import ROOT, alive, most_under_way, serving, wait_for, weight_bytes
from tests.e2e.valve import Valve
from tools.blob_server import BlobServer


def test_kill_9_of_the_loader_mid_load(small_model, tmp_path):
    """The load resumes on the same arena, bit-exact, and fetches only what had not landed."""
    lanes, chunk_bytes = 4, 1 << 20
    flags = ("--concurrency", str(lanes), "--chunk-mib", "1", "--hedge-budget-ratio", "0")
    valve = Valve(passes=14)  # a quarter of the chunks
    with (
        BlobServer(small_model.folder, hook=valve) as source,
        serving(source.url, *flags, log_path=tmp_path / "log") as server,
    ):
        wait_for(lambda: valve.passes <= -lanes)
        arena = arena_fd(server.pid)
        server.child("streaming").kill()
        valve.opened.set()
        server.wait_ready()
        answer = server.complete(small_model.prompt_token_ids, max_tokens=1)
        assert arena_fd(server.pid) == arena
        compare_arena(server.pid, arena, small_model.folder, chunk_bytes)
        log = server.log()
        total = server.health()[1]["bytes_total"]
    assert answer["choices"][0]["text"] == small_model.continuation()
    assert log.count("restarting the load for the") == 1
    assert f"shards, {total} bytes, {source.url} -> cpu" in log
    # Twice over the wire: at most what had not landed when the loader died.
    assert total <= weight_bytes(source) <= total + most_under_way(lanes) * chunk_bytes


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


def test_kill_9_of_the_engine(small_model, tmp_path):
    """Its request fails with an error, the next is answered the same by another engine, no byte is fetched."""
    with (
        BlobServer(small_model.folder) as source,
        serving(source.url, log_path=tmp_path / "log") as server,
    ):
        server.wait_ready()
        prompt, engine = small_model.prompt_token_ids, server.child("app.engine")
        before = server.complete(prompt, max_tokens=8)["choices"]
        fetched = len(source.requests)
        body = {"model": "m", "prompt": prompt, "max_tokens": 4000, "ignore_eos": True, "stream": True}
        with server.client.stream("POST", "/v1/completions", json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            engine.kill()
            rest = [line for line in lines if line]
        assert "error" in rest[-1]
        assert "data: [DONE]" not in rest
        wait_for(lambda: server.health()[0] == 503)
        assert server.health()[1]["state"] == "warming"
        server.wait_ready()
        assert server.complete(prompt, max_tokens=8)["choices"] == before
        assert len(source.requests) == fetched
        assert len(server.family()) == 1


@pytest.mark.parametrize("moment", ["at once", "while loading", "when ready"])
def test_sigterm_ends_everything_with_0(small_model, tmp_path, moment):
    """A gentle stop leaves no process and says so with its exit code."""
    with (
        BlobServer(small_model.folder, bytes_per_s=5e6 if moment == "while loading" else None) as source,
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


def test_an_engine_that_dies_of_its_haste_is_followed_by_a_patient_one(tiny_model, tmp_path):
    """Where torch's core does not suffice, the next engine waits for all of torch, and serves."""
    (tmp_path / "sitecustomize.py").write_text(HASTE)
    environ = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    with serving(str(tiny_model.folder), log_path=tmp_path / "log", environ=environ) as server:
        server.wait_ready()
        answer = server.complete(tiny_model.prompt_token_ids, max_tokens=1)
        assert answer["choices"][0]["text"] == tiny_model.continuation()
        assert server.log().count("app.engine died") == 1
