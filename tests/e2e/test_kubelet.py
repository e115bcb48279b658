"""The server in a pod: probed, gated, restarted and deleted by a kubelet that keeps Kubernetes' rules."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor as ThreadPool

import httpx
import pytest
from msgspec import structs

from tests.coldstream import wait_for
from tests.e2e.pod import DRAIN, pod_of
from tests.pod_spec import Lifecycle

# 1.3 MB of headers and weights in 6 s: longer than three failed probes.
SLOW_BYTES_PER_S = 0.2e6
LIFE = ["Started", "Ready", "Deleting", "PreStop", "Killing"]


def liveness_on_health(pod):
    """The pod with nothing else that would wait for a start."""
    get = structs.replace(pod.container.liveness_probe.http_get, path="/health")
    liveness = structs.replace(pod.container.liveness_probe, http_get=get)
    changed = structs.replace(pod.container, liveness_probe=liveness, startup_probe=None, lifecycle=Lifecycle())
    return structs.replace(pod, containers=(changed,))


@pytest.fixture(scope="module")
def pod(tiny_model, tmp_path_factory):
    """One whose load was slow, with traffic all the time; tests may kill what they like in it."""
    over = threading.Event()
    with pod_of(tiny_model.folder, tmp_path_factory.mktemp("pod"), bytes_per_s=SLOW_BYTES_PER_S) as pod:
        traffic = threading.Thread(target=pod.send_traffic, args=(over,))
        traffic.start()
        try:
            yield pod
        finally:
            over.set()
            traffic.join()


@pytest.fixture(scope="module")
def slow_start(pod):
    """The kubelet's events up to the first answer, and that answer's status."""
    wait_for(lambda: pod.answers, 60)
    events = list(pod.kubelet.events)
    pod.source.throttle = None
    return events, pod.answers[0][1]


def test_a_slow_load_is_no_reason_to_kill(slow_start, pod):
    """Three failed probes' time and more goes by, nobody kills it, and the first request it gets is answered."""
    (started, ready), status = slow_start
    assert [started.reason, ready.reason] == ["Started", "Ready"]
    assert ready.at_s - started.at_s > 4
    assert status == 200
    assert pod.failures_of_liveness() == []


def test_a_lost_engine_gates_traffic_and_restarts_no_container(slow_start, pod):
    """Unready while another engine starts, however long that takes, then ready again in the same container."""
    seen, restarts, process = len(pod.kubelet.events), pod.kubelet.restarts, pod.kubelet.process
    server = pod.server()
    server.child("app.engine").kill()
    wait_for(lambda: pod.health() == 503)
    engine = server.child("app.engine")
    engine.suspend()  # it takes its time
    wait_for(lambda: not pod.kubelet.ready)
    answered = len(pod.answers)
    time.sleep(0.3)
    assert len(pod.answers) <= answered + 1  # the one that was under way
    engine.resume()
    wait_for(lambda: pod.kubelet.ready)
    answered = len(pod.answers)
    wait_for(lambda: len(pod.answers) > answered + 1)
    assert pod.answers[-1][1] == 200
    assert [event.reason for event in pod.kubelet.events[seen:]] == ["NotReady", "Ready"]
    assert (pod.kubelet.restarts, pod.kubelet.process) == (restarts, process)
    assert pod.failures_of_liveness() == []


def test_a_killed_server_is_restarted_and_serves_again(slow_start, pod):
    """Nothing that the first one left is in the next one's way."""
    wait_for(lambda: pod.kubelet.ready)
    seen, restarts = len(pod.kubelet.events), pod.kubelet.restarts
    os.kill(pod.kubelet.process.pid, signal.SIGKILL)
    wait_for(lambda: pod.kubelet.restarts == restarts + 1)
    wait_for(lambda: pod.kubelet.ready)
    assert pod.complete() == 200
    assert [event.reason for event in pod.kubelet.events[seen:]] == ["Died", "Started", "Ready"]


def test_a_deleted_pod_finishes_its_stream_and_exits_0(tiny_model, tmp_path):
    """The hook, then unready at once, the stream to its end, and no kill."""
    with pod_of(tiny_model.folder, tmp_path) as pod, ThreadPool(1) as pool:
        wait_for(lambda: pod.kubelet.ready)
        body = {"model": "model", "prompt": [300], "max_tokens": 500, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{pod.url}/v1/completions", json=body, timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            deletion = pool.submit(pod.kubelet.delete)
            wait_for(lambda: "PreStop" in pod.kubelet.reasons())
            assert pod.complete() == 200  # a service may send some until it has heard
            assert not pod.kubelet.ready
            engine = pod.server().child("app.engine")
            engine.suspend()  # the stream lasts, however fast the machine is
            wait_for(lambda: "Killing" in pod.kubelet.reasons())
            wait_for(lambda: pod.health() == 503)
            refused = pod.complete()
            engine.resume()
            rest = [line for line in lines if line]
        assert deletion.result() == 0
    assert refused == 503
    assert '"finish_reason":"length"' in rest[-2]
    assert rest[-1] == "data: [DONE]"
    # The probe may have seen it drain, too.
    assert [reason for reason in pod.kubelet.reasons() if reason != "NotReady"] == LIFE


def test_a_stream_that_outlives_the_drain_is_cut_off_before_the_grace_is_over(tiny_model, tmp_path):
    """Its client is told, and the server ends by itself: nobody has to kill it."""
    with pod_of(tiny_model.folder, tmp_path, scale=0.05, limits=DRAIN) as pod, ThreadPool(1) as pool:
        wait_for(lambda: pod.kubelet.ready)
        body = {"model": "model", "prompt": [300], "max_tokens": 1500, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{pod.url}/v1/completions", json=body, timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            pod.server().child("app.engine").suspend()  # it does not end
            deletion = pool.submit(pod.kubelet.delete)
            rest = [line for line in lines if line]
        assert deletion.result() == 0
    assert "shutting down" in rest[-1]
    assert "data: [DONE]" not in rest
    assert [reason for reason in pod.kubelet.reasons() if reason != "NotReady"] == LIFE


def test_liveness_on_health_would_kill_a_server_that_loads(tiny_model, tmp_path):
    """The mistake that /livez is there for; and the kubelet of these tests does kill."""
    with pod_of(tiny_model.folder, tmp_path, bytes_per_s=SLOW_BYTES_PER_S, mistaken=liveness_on_health) as pod:
        wait_for(lambda: pod.kubelet.restarts == 1)
        reasons = pod.kubelet.reasons()
        died = next(event for event in pod.kubelet.events if event.reason == "Died")
    assert reasons == ["Started", "Unhealthy", "Killing", "Died", "Started"]
    assert died.message == "exit 0"
