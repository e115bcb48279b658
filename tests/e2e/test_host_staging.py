"""host-staging, the way that streaming is compared with: served the same, from shards that were on disk first."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from pathlib import Path

import httpx
import pytest
from azure.storage.blob import ContainerClient

from streaming.upload import push
from tests.coldstream import children_of, serving, wait_for
from tests.e2e.test_refusals import check, serve
from tools.blob_server import BlobServer

PROMPT = "The capital of France is"
FLAGS = ("--load-strategy", "host-staging")


def landed_bytes(server) -> int:
    with contextlib.suppress(httpx.TransportError):
        return int(server.health()[1]["bytes_landed"])
    return 0


def disk_files(pid: int) -> list[str]:
    """Files without a name that a process holds open on disk."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(entry.readlink()))
    return [name for name in found if name.endswith("(deleted)") and "/memfd:" not in name]


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_it_answers_as_streaming_does(small_model, pushed_small, azure_environment, tmp_path, dtype):
    """Greedy tokens are the same; the log and the ledger say which way the weights came."""
    answers, logs, ledgers = [], [], []
    for strategy in ("direct-gpu", "host-staging"):
        flags = ("--load-strategy", strategy, "--dtype", dtype)
        with serving(pushed_small, *flags, log_path=tmp_path / strategy, environ=azure_environment) as server:
            server.wait_ready()
            answers.append(server.complete(small_model.prompt_token_ids, max_tokens=12)["choices"][0]["text"])
            ledgers.append(server.client.get("/startupz").json())
            logs.append(server.log())
    assert answers[0] == answers[1]
    assert answers[0].startswith(small_model.continuation())
    tensors = small_model.tensor_count()
    assert re.search(rf"staged {tensors} tensors in 2 shards, \d+ bytes, {pushed_small} -> disk in [\d.]+ s", logs[1])
    assert f"loaded {tensors} tensors from disk to cpu" in logs[1]
    assert "streamed" in logs[0]
    assert "streamed" not in logs[1]
    phases = {phase["name"]: phase for phase in ledgers[1]["phases"]}
    assert phases["weights.fetch"]["end_s"] <= phases["weights.load"]["start_s"]
    assert ledgers[1]["milestones"].keys() == ledgers[0]["milestones"].keys()
    assert ledgers[1]["fallbacks"] == []


def test_an_engine_that_dies_is_followed_by_one_that_downloads_nothing(
    small_model, azurite_source, azure_environment, tmp_path
):
    """The server keeps the shards: the blobs may even be gone by then."""
    uri = "az://staging-engine/model"
    push(small_model.folder, uri, azurite_source, quiet=True)
    with serving(uri, *FLAGS, log_path=tmp_path / "log", environ=azure_environment) as server:
        server.wait_ready()
        before = server.complete(small_model.prompt_token_ids, max_tokens=8)["choices"]
        ContainerClient.from_connection_string(
            azurite_source.azure.connection_string, "staging-engine"
        ).delete_container()
        server.child("app.engine").kill()
        wait_for(lambda: server.health()[0] == 503)
        server.wait_ready()
        assert server.complete(small_model.prompt_token_ids, max_tokens=8)["choices"] == before
        assert len(disk_files(server.pid)) == 2


def test_a_loader_that_dies_is_followed_by_another(pushed_demo, azure_environment, tmp_path):
    """The load goes on where shards are missing and ends as if nothing had been."""
    slowly = ("--concurrency", "1", "--chunk-mib", "1")
    with serving(pushed_demo, *FLAGS, *slowly, log_path=tmp_path / "log", environ=azure_environment) as server:
        wait_for(lambda: landed_bytes(server) > 0)
        server.child("streaming").kill()
        server.wait_ready()
        assert "Paris" in server.complete(PROMPT, max_tokens=5)["choices"][0]["text"]
        log = server.log()
    assert log.count("restarting the load for the") == 1


@pytest.mark.parametrize("moment", ["while staging", "when ready"])
def test_kill_9_leaves_no_process_and_no_file(pushed_small, azure_environment, tmp_path, moment):
    """What is on disk has no name, so it goes with the last process that holds it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    environ = {**azure_environment, "TMPDIR": str(disk)}
    with serving(pushed_small, *FLAGS, log_path=tmp_path / "log", environ=environ, grace_s=0) as server:
        if moment == "when ready":
            server.wait_ready()
            assert all(name.startswith(str(disk)) for name in disk_files(server.pid))
        else:
            wait_for(lambda: landed_bytes(server) > 0)
        assert disk_files(server.pid)
        os.kill(server.pid, signal.SIGKILL)
        wait_for(lambda: children_of(server.pid) == [], 2)
    assert list(disk.iterdir()) == []


def test_a_source_that_cannot_be_staged_is_refused(demo_model_dir):
    """One line, exit 3, and not a byte read."""
    with BlobServer(demo_model_dir) as source:
        check(serve(source.url, *FLAGS), 3, "SourceError", "host-staging reads from Azure and from folders only")
        assert source.requests == []
