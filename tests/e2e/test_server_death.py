"""However and whenever the server ends, nothing of it is left: no process, no zombie, no memory."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time

import pytest

from tests.coldstream import runs, serving, wait_for
from tests.leftovers import arenas, holders, session, zombies
from tools.blob_server import BlobServer

# 1.3 MB of headers and weights: two seconds, half of them until there is a plan.
SLOW_BYTES_PER_S = 0.6e6
GONE_WITHIN_S = 2.0
EXPORTER = "app.telemetry.exporter"
# One that has nowhere to send to is there all the same.
TRACED = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}


def moments(seed, states, count):
    """So many moments in each state: its name and seconds after it began."""
    chance = random.Random(seed)
    return [pytest.param(state, chance.uniform(0, 0.5), id=f"{state}-{n}") for state in states for n in range(count)]


@contextlib.contextmanager
def server_in(state, after_s, model, log_path, *, waits_for_us=False):
    """A server at a moment of its startup; weights that come at once leave it warming until torch is imported.

    The first moments are those of the interpreter, before any line of ours: `waits_for_us` leaves them out.
    """
    slow = SLOW_BYTES_PER_S if state == "loading" else None
    with (
        BlobServer(model.folder, bytes_per_s=slow) as source,
        serving(source.url, log_path=log_path, environ=TRACED, grace_s=0) as server,
    ):
        if state != "starting":
            server.reach(state)
        elif waits_for_us:
            wait_for(server.family)
        time.sleep(after_s)
        yield server


def check_nothing_left(pid, inodes, deadline_s):
    """Nobody of the session and nobody who holds its memory, soon after it ended."""
    while (left := (session(pid), holders(inodes))) != ([], []) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert left == ([], [])


def kill_9(state, after_s, model, log_path):
    """Kill a server at a moment of its life, and look for what it leaves."""
    with server_in(state, after_s, model, log_path) as server:
        family = session(server.pid)
        inodes = {inode for pid in family for inode in arenas(pid)}
        assert server.pid in family
        assert inodes or state == "starting"
        os.kill(server.pid, signal.SIGKILL)
        check_nothing_left(server.pid, inodes, time.monotonic() + GONE_WITHIN_S)


def sigterm(state, after_s, model, log_path):
    """Ask a server to end at a moment of its startup."""
    with server_in(state, after_s, model, log_path, waits_for_us=True) as server:
        inodes = {inode for pid in session(server.pid) for inode in arenas(pid)}
        os.kill(server.pid, signal.SIGTERM)
        deadline_s = time.monotonic() + GONE_WITHIN_S
        while (ended := os.waitpid(server.pid, os.WNOHANG)) == (0, 0):
            assert time.monotonic() < deadline_s, server.log()
            time.sleep(0.01)
        check_nothing_left(server.pid, inodes, deadline_s)
        log = server.log()
    assert os.waitstatus_to_exitcode(ended[1]) == 0
    assert "Traceback" not in log


@pytest.mark.parametrize(("state", "after_s"), moments(4, ["starting", "loading", "warming", "ready"], 1))
def test_kill_9_leaves_nothing(state, after_s, tiny_model, tmp_path):
    """Neither children nor theirs, nor the exporter, nor a descriptor of the arena, 2 s later."""
    kill_9(state, after_s, tiny_model, tmp_path / "log")


@pytest.mark.slow
@pytest.mark.parametrize(("state", "after_s"), moments(20, ["starting", "loading", "warming", "ready"], 5))
def test_kill_9_leaves_nothing_twenty_times(state, after_s, tiny_model, tmp_path):
    """The same at twenty other moments."""
    kill_9(state, after_s, tiny_model, tmp_path / "log")


@pytest.mark.parametrize(("state", "after_s"), moments(3, ["starting", "loading", "warming"], 1))
def test_sigterm_before_readiness_ends_it_in_2_s(state, after_s, tiny_model, tmp_path):
    """With code 0, and nothing is left."""
    sigterm(state, after_s, tiny_model, tmp_path / "log")


@pytest.mark.slow
@pytest.mark.parametrize(("state", "after_s"), moments(21, ["starting", "loading", "warming"], 7))
def test_sigterm_before_readiness_ends_it_in_2_s_each_of_21_times(state, after_s, tiny_model, tmp_path):
    """The same at 21 other moments."""
    sigterm(state, after_s, tiny_model, tmp_path / "log")


def test_a_running_server_reaps_its_children(tiny_model, tmp_path):
    """Loader, engine and exporter end in their turn, and none of them stays a zombie."""
    with serving(str(tiny_model.folder), log_path=tmp_path / "log", environ=TRACED) as server:
        server.wait_ready()
        server.child(EXPORTER)
        wait_for(lambda: len(server.family()) == 2)  # the loader has done its work
        wait_for(lambda: zombies(server.pid) == [])
        server.child("app.engine").kill()
        wait_for(lambda: server.health()[0] == 503)
        server.wait_ready()
        assert zombies(server.pid) == []
        server.child(EXPORTER).kill()
        wait_for(lambda: not any(runs(child, EXPORTER) for child in server.family()))
        server.complete("t1", max_tokens=1)  # its trace cannot be sent
        wait_for(lambda: zombies(server.pid) == [])
