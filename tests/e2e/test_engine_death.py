"""An engine that is killed before or while it serves is followed by another, and no byte is fetched again."""

from __future__ import annotations

import random
import time

import pytest

from tests.coldstream import serving, wait_for, weight_bytes
from tools.blob_server import BlobServer

# 1.3 MB of headers and weights: two seconds, half of them until there is a plan.
SLOW_BYTES_PER_S = 0.6e6


def moments(seed, states, count):
    """So many moments in each state: its name and seconds after it began."""
    chance = random.Random(seed)
    return [pytest.param(state, chance.uniform(0, 0.4), id=f"{state}-{n}") for state in states for n in range(count)]


def check_answer(server, model):
    """The planted token comes: every weight is in its place."""
    choice = server.complete(model.prompt_token_ids, max_tokens=1)["choices"][0]
    assert choice["text"] == model.continuation()


def kill_before_readiness(state, after_s, model, log_path):
    """Kill the engine at a moment of the startup; the load is none of its business."""
    slow = None if state == "warming" else SLOW_BYTES_PER_S
    with BlobServer(model.folder, bytes_per_s=slow) as source, serving(source.url, log_path=log_path) as server:
        server.reach(state)
        time.sleep(after_s)
        server.child("app.engine").kill()
        wait_for(lambda: "app.engine died" in server.log())
        server.wait_ready()
        check_answer(server, model)
        health = server.health()[1]
        assert weight_bytes(source) == health["bytes_total"] == health["bytes_landed"]


@pytest.mark.parametrize(("state", "after_s"), moments(3, ["starting", "loading", "warming"], 1))
def test_an_engine_lost_before_readiness_is_replaced(state, after_s, tiny_model, tmp_path):
    """The load goes on meanwhile, every byte once, and the next engine serves it."""
    kill_before_readiness(state, after_s, tiny_model, tmp_path / "log")


@pytest.mark.slow
@pytest.mark.parametrize(("state", "after_s"), moments(21, ["starting", "loading", "warming"], 7))
def test_an_engine_lost_before_readiness_is_replaced_each_of_21_times(state, after_s, tiny_model, tmp_path):
    """The same at 21 other moments."""
    kill_before_readiness(state, after_s, tiny_model, tmp_path / "log")


def kill_in_stream(server, after_events):
    """Kill the engine after so many events of a stream; gives the rest of it."""
    body = {"model": "m", "prompt": [300], "max_tokens": 3000, "ignore_eos": True, "stream": True}
    with server.client.stream("POST", "/v1/completions", json=body) as stream:
        lines = (line for line in stream.iter_lines() if line)
        for _ in range(after_events):
            next(lines)
        server.child("app.engine").kill()
        return list(lines)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_streams_of_lost_engines_end_with_an_error(seed, tiny_model, tmp_path):
    """Two on each server, cut after 1 to 300 events: no [DONE], the next engine answers right, no read follows."""
    chance = random.Random(seed)
    with BlobServer(tiny_model.folder) as source, serving(source.url, log_path=tmp_path / "log") as server:
        server.wait_ready()
        fetched = len(source.requests)
        for _ in range(2):
            rest = kill_in_stream(server, chance.randint(1, 300))
            assert "error" in rest[-1]
            assert "data: [DONE]" not in rest
            wait_for(lambda: server.health()[0] == 503)
            server.wait_ready()
            check_answer(server, tiny_model)
        assert len(source.requests) == fetched
