"""The server in a pod: probed, gated, restarted and deleted by a kubelet that keeps Kubernetes' rules."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor as ThreadPool

import httpx
import pytest
from msgspec import structs

from tests.coldstream import Server, serve_command, wait_for
from tests.kubelet import Kubelet
from tests.manifests import named, rendered
from tests.pod_spec import Hook, Lifecycle, Sleep, read_pod_spec
from tools.blob_server import BlobServer
from tools.child import running
from tools.ports import free_port

# 1.3 MB of headers and weights in 6 s: longer than three failed probes.
SLOW_BYTES_PER_S = 0.2e6

# Periods and the hook are lived ten times faster. What the server takes its own time for is not: an answer, its end.
FASTER = 0.1


def faster(probe):
    """The probe, asked more often."""
    return structs.replace(probe, period_seconds=probe.period_seconds * FASTER)


def base_pod(port):
    """The pod of k8s/base, on a port of this machine."""
    pod = read_pod_spec(rendered("base"))
    container = pod.container
    hook = Hook(Sleep(container.lifecycle.pre_stop.sleep.seconds * FASTER))
    changed = structs.replace(
        container,
        ports=tuple(structs.replace(declared, container_port=port) for declared in container.ports),
        startup_probe=faster(container.startup_probe),
        liveness_probe=faster(container.liveness_probe),
        readiness_probe=faster(container.readiness_probe),
        lifecycle=Lifecycle(hook),
    )
    return structs.replace(pod, containers=(changed,))


def mistaken_pod(port):
    """The same with liveness on /health, and nothing else that would wait for a start."""
    pod = base_pod(port)
    get = structs.replace(pod.container.liveness_probe.http_get, path="/health")
    liveness = structs.replace(pod.container.liveness_probe, http_get=get)
    changed = structs.replace(pod.container, liveness_probe=liveness, startup_probe=None, lifecycle=Lifecycle())
    return structs.replace(pod, containers=(changed,))


LIFE = ["Started", "Ready", "Deleting", "PreStop", "Killing"]


class Pod:
    """A pod, its source, and a client that asks for a token whenever traffic may flow."""

    def __init__(self, kubelet, source, port, log_path):
        self.kubelet, self.source, self.port, self.log_path = kubelet, source, port, log_path
        self.url = f"http://127.0.0.1:{port}"
        self.answers = []  # time and status of every request for text

    def server(self):
        """The process that runs now."""
        return Server(self.kubelet.process.pid, self.port, self.log_path)

    def health(self):
        """Status of /health; None where nobody answers."""
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/health", timeout=10).status_code
        return None

    def complete(self):
        """Status of one completion; None where nobody answers."""
        with contextlib.suppress(httpx.TransportError):
            body = {"model": "m", "prompt": [300, 301], "max_tokens": 1}
            return httpx.post(f"{self.url}/v1/completions", json=body, timeout=30).status_code
        return None

    def send_traffic(self, over):
        """What a service in front of the pod does."""
        while not over.wait(0.05):
            if self.kubelet.ready:
                self.answers.append((time.monotonic(), self.complete()))


@contextlib.contextmanager
def pod_of(spec_of, model, folder, *, bytes_per_s=None):
    """A pod that serves `model` through an HTTP source, with the settings of k8s/base."""
    port, runs = free_port(), itertools.count()
    environ = {**os.environ, **named("base", "ConfigMap", "coldstream")["data"]}
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(BlobServer(model.folder, bytes_per_s=bytes_per_s))

        def start():
            # All of the grace but the hook's: a busy machine's tokens take longer than k8s/base allows for.
            command = serve_command(source.url, "--drain-timeout", "110", port=port)
            return stack.enter_context(running(command, log_path=folder / f"log-{next(runs)}", env=environ))

        kubelet = stack.enter_context(Kubelet(spec_of(port), start))
        yield Pod(kubelet, source, port, folder / "log-0")


@pytest.fixture(scope="module")
def pod(tiny_model, tmp_path_factory):
    """One whose load was slow, with traffic all the time; tests may kill what they like in it."""
    over = threading.Event()
    with pod_of(base_pod, tiny_model, tmp_path_factory.mktemp("pod"), bytes_per_s=SLOW_BYTES_PER_S) as pod:
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


def test_a_slow_load_is_no_reason_to_kill(slow_start):
    """Three failed probes' time and more goes by, nobody kills it, and the first request it gets is answered."""
    (started, ready), status = slow_start
    assert [started.reason, ready.reason] == ["Started", "Ready"]
    assert ready.at_s - started.at_s > 4
    assert status == 200


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
    with pod_of(base_pod, tiny_model, tmp_path) as pod, ThreadPool(1) as pool:
        wait_for(lambda: pod.kubelet.ready)
        body = {"model": "m", "prompt": [300], "max_tokens": 1500, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{pod.url}/v1/completions", json=body, timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            deletion = pool.submit(pod.kubelet.delete)
            wait_for(lambda: "PreStop" in pod.kubelet.reasons())
            assert pod.complete() == 200  # a service may send some until it has heard
            assert not pod.kubelet.ready
            wait_for(lambda: "Killing" in pod.kubelet.reasons())
            wait_for(lambda: pod.health() == 503)
            refused = pod.complete()
            rest = [line for line in lines if line]
        assert deletion.result() == 0
    assert refused == 503
    assert '"finish_reason":"length"' in rest[-2]
    assert rest[-1] == "data: [DONE]"
    # The probe may have seen it drain, too.
    assert [reason for reason in pod.kubelet.reasons() if reason != "NotReady"] == LIFE


def test_liveness_on_health_would_kill_a_server_that_loads(tiny_model, tmp_path):
    """The mistake that /livez is there for; and the kubelet of these tests does kill."""
    with pod_of(mistaken_pod, tiny_model, tmp_path, bytes_per_s=SLOW_BYTES_PER_S) as pod:
        wait_for(lambda: pod.kubelet.restarts == 1)
        reasons = pod.kubelet.reasons()
        died = next(event for event in pod.kubelet.events if event.reason == "Died")
    assert reasons == ["Started", "Unhealthy", "Killing", "Died", "Started"]
    assert died.message == "exit 0"
