"""A pod whose source stalls or whose engine crashes: only what outlives its limit restarts it, and never a liveness probe."""

from __future__ import annotations

import contextlib
import time

import httpx
import pytest

from tests.coldstream import wait_for
from tests.e2e.pod import SOURCE, limit_s, pod_of
from tests.e2e.valve import Valve

# A stall lives so much faster: its limit is 6 s, and three failed liveness probes would take 1.5 s.
FASTER = 0.05
# Where it is over in any case, its limit is 4 s.
SHORTER = 1 / 30


@pytest.fixture
def valve():
    """The source's; it shuts after a few reads of weights."""
    valve = Valve(passes=4)
    yield valve
    valve.opened.set()


@contextlib.contextmanager
def stalled(model, folder, valve, limits_scale):
    """A pod whose load stands still halfway, and its limit of stalls in seconds."""
    limits = {"limits": SOURCE, "limits_scale": limits_scale}
    with pod_of(model.folder, folder, scale=FASTER, hook=valve, **limits) as pod:
        wait_for(lambda: valve.passes < 0)
        yield pod, limit_s("COLDSTREAM_STALL_TIMEOUT") * limits_scale


def deaths(kubelet):
    """What was said of every run that died."""
    return [event.message for event in kubelet.events if event.reason == "Died"]


def test_a_stall_within_its_limit_restarts_nobody(small_model, tmp_path, valve):
    """Longer than failed liveness probes and dead connections take: the same process goes on and becomes ready."""
    with stalled(small_model, tmp_path, valve, FASTER) as (pod, limit_of_stalls_s):
        kubelet, process = pod.kubelet, pod.kubelet.process
        time.sleep(2 / 3 * limit_of_stalls_s)
        health = httpx.get(f"{pod.url}/health").json()
        assert health["state"] == "loading"
        assert 0 < health["bytes_landed"] < health["bytes_total"]
        valve.opened.set()
        wait_for(lambda: kubelet.ready, 60)
        assert pod.complete() == 200
        assert (kubelet.reasons(), kubelet.restarts) == (["Started", "Ready"], 0)
        assert kubelet.process is process
        assert pod.failures_of_liveness() == []


def test_a_stall_beyond_its_limit_restarts_the_container(small_model, tmp_path, valve):
    """The server ends by itself with exit code 3 and says why; once the source has healed the next run serves."""
    with stalled(small_model, tmp_path, valve, SHORTER) as (pod, limit_of_stalls_s):
        kubelet = pod.kubelet
        wait_for(lambda: deaths(kubelet), 60)
        valve.opened.set()
        wait_for(lambda: kubelet.ready, 60)
        assert pod.complete() == 200
        (death,) = deaths(kubelet)
        assert f"/model: nothing landed for {limit_of_stalls_s:g} s, also over new connections" in death
        assert death.startswith("exit 3: ")
        assert kubelet.reasons() == ["Started", "Died", "Started", "Ready"]
        assert pod.failures_of_liveness() == []


@pytest.mark.slow
def test_an_engine_that_crashes_again_and_again_restarts_the_container(tiny_model, tmp_path):
    """After four deaths the server ends with exit code 6 and says why; the next run serves."""
    with pod_of(tiny_model.folder, tmp_path) as pod:
        kubelet = pod.kubelet
        wait_for(lambda: kubelet.ready, 60)
        server = pod.server()
        for death in range(1, 5):
            server.child("app.engine").kill()
            wait_for(lambda n=death: deaths(kubelet) or server.log().count("app.engine died") == n)
        wait_for(lambda: deaths(kubelet) and kubelet.ready, 60)
        assert pod.complete() == 200
        (death,) = deaths(kubelet)
        assert death.startswith("exit 6: ")
        assert "app.engine died 4 times within ten minutes" in death
        assert [reason for reason in kubelet.reasons() if "Ready" not in reason] == ["Started", "Died", "Started"]
        assert pod.failures_of_liveness() == []
