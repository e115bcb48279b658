"""A loader that is killed is followed by one that fetches the rest: the weights are right, and nothing hangs."""

from __future__ import annotations

import os
import random
import time

import pytest

from tests.coldstream import most_under_way, runs, serving, wait_for, weight_bytes
from tools.blob_server import BlobServer

LANES, CHUNK_BYTES = 4, 4 << 20
FLAGS = ("--concurrency", f"{LANES}", "--chunk-mib", f"{CHUNK_BYTES >> 20}", "--hedge-budget-ratio", "0")
BYTES_PER_S = 150e6  # 269 MB in about 2 s
BOUND_S = 60
_LAST_SHARE = 0.9  # a loader that dies once everything has landed is not restarted, and need not be
PROMPT = "The capital of France is"


def moments(seed, count):
    """A quarter of them before there is a plan (seconds after the loader began), the others at a share of the bytes."""
    chance = random.Random(seed)
    early = max(1, count // 4)
    return [
        *(pytest.param(chance.uniform(0, 0.4), 0.0, id=f"early-{n}") for n in range(early)),
        *(pytest.param(0.0, chance.uniform(0, _LAST_SHARE), id=f"fetching-{n}") for n in range(count - early)),
    ]


def answer(server):
    """A greedy completion with the logits' say: other weights would give another one."""
    (choice,) = server.complete(PROMPT, max_tokens=8, logprobs=5)["choices"]
    return choice


@pytest.fixture(scope="module")
def undisturbed(demo_model_dir, tmp_path_factory):
    """What a server says whose loader nobody killed."""
    with serving(str(demo_model_dir), log_path=tmp_path_factory.mktemp("undisturbed") / "log") as server:
        server.wait_ready()
        return answer(server)


def loaders(server):
    """The loader, unless it has ended."""
    return [child for child in server.family() if runs(child, "streaming")]


def kill_once(model, log_path, after_s, share, undisturbed):
    """Kill the loader of one load, and see the load through."""
    total = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    with (
        BlobServer(model, bytes_per_s=BYTES_PER_S) as source,
        serving(source.url, *FLAGS, log_path=log_path) as server,
    ):
        wait_for(lambda: loaders(server))
        time.sleep(after_s)
        wait_for(lambda: weight_bytes(source) >= share * total * 0.98)
        killed = [child.kill() for child in loaders(server)]
        server.wait_ready(BOUND_S)
        assert answer(server) == undisturbed
        health = server.health()[1]
        restarts = server.log().count("restarting the load for the")
        fetched = weight_bytes(source)
    assert restarts == len(killed)
    assert health["bytes_landed"] == health["bytes_total"]
    # Twice over the wire: at most what had not landed when the loader died.
    assert health["bytes_total"] <= fetched <= health["bytes_total"] + most_under_way(LANES) * CHUNK_BYTES


@pytest.mark.parametrize(("after_s", "share"), moments(2, 2))
def test_the_load_goes_on(after_s, share, demo_model_dir, tmp_path, undisturbed):
    """Tokens and their log-probabilities are those of a load that nobody disturbed."""
    kill_once(demo_model_dir, tmp_path / "log", after_s, share, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(("after_s", "share"), moments(20, 20))
def test_the_load_goes_on_each_of_twenty_times(after_s, share, demo_model_dir, tmp_path, undisturbed):
    """The same at twenty other moments."""
    kill_once(demo_model_dir, tmp_path / "log", after_s, share, undisturbed)


def test_a_loader_that_keeps_dying_ends_the_server_with_the_reason(tiny_model, tmp_path):
    """Exit 6 in bounded time, and one line that says so."""
    with (
        BlobServer(tiny_model.folder, bytes_per_s=0.1e6) as source,
        serving(source.url, log_path=tmp_path / "log") as server,
    ):

        def ended():
            for loader in loaders(server):
                loader.kill()
            return os.waitpid(server.pid, os.WNOHANG) if not server.family() else (0, 0)

        def status():
            pid, status = ended()
            return (status,) if pid else None

        (exit_status,) = wait_for(status, BOUND_S)
        log = server.log()
    assert os.waitstatus_to_exitcode(exit_status) == 6
    assert "ProcessLost: streaming died 4 times" in log
    assert "Traceback" not in log
