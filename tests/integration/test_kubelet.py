"""The kubelet that other tests judge the server with, judged itself: scripted answers, real processes."""

from __future__ import annotations

import contextlib
import itertools
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.coldstream import wait_for
from tests.kubelet import Kubelet
from tests.pod_spec import HttpGet, Lifecycle, Probe, read_pod_spec
from tests.probing import Tally, is_success

SCALE = 0.05

MANIFEST = """
apiVersion: v1
kind: Service
spec: {ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: Deployment
spec:
  replicas: 1
  template:
    metadata: {labels: {app: llm}}
    spec:
      terminationGracePeriodSeconds: 40
      containers:
      - name: llm
        image: llm
        ports: [{name: http, containerPort: %d}]
        lifecycle: {preStop: {sleep: {seconds: 5}}}
        startupProbe: {httpGet: {path: /startup, port: http}, periodSeconds: 1, failureThreshold: 4, timeoutSeconds: 40}
        livenessProbe: {httpGet: {path: /live, port: http}, periodSeconds: 1, timeoutSeconds: 40}
        readinessProbe: {httpGet: {path: /ready, port: http}, periodSeconds: 1, timeoutSeconds: 40, successThreshold: 2}
"""


class Script:
    """Answers every path with the statuses that were scripted for it, the last one over and over."""

    def __init__(self):
        self.statuses = {}
        self.asked = []
        script = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                script.asked.append((time.monotonic(), self.path))
                status = script.next(self.path)
                if status is not None:
                    self.send_response(status)
                    self.end_headers()

            def log_message(self, format, *args):  # noqa: A002  (the base class's name)
                """What was asked is in `asked`."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.http.server_address[1]

    def next(self, path):
        """The status that comes now."""
        statuses = self.statuses.get(path, [200])
        return statuses.pop(0) if len(statuses) > 1 else statuses[0]

    def count(self, path):
        """How often it was asked."""
        return sum(asked == path for _, asked in self.asked)


@pytest.fixture
def script():
    """A server that listens."""
    script = Script()
    thread = threading.Thread(target=script.http.serve_forever, args=(0.01,))
    thread.start()
    yield script
    script.http.shutdown()
    script.http.server_close()
    thread.join()


GENTLE = "import time; time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"


@contextlib.contextmanager
def kubelet_of(pod, code=GENTLE, **arguments):
    """The pod with a process that does what `code` says; it has begun once this is entered."""

    def start():
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        if code == STUBBORN:
            process.stdout.readline()
        process.stdout.close()
        return process

    with Kubelet(pod, start, scale=SCALE, **arguments) as kubelet:
        yield kubelet


def pod_of(script, **probes):
    """The manifest's pod, with other probes."""
    pod = read_pod_spec(MANIFEST % script.port)
    (container,) = pod.containers
    return msgspec.structs.replace(pod, containers=(msgspec.structs.replace(container, **probes),))


def test_a_manifest_is_read_with_kubernetes_names_and_defaults():
    """What a Deployment says is what the pod does; what it leaves out has Kubernetes' defaults."""
    pod = read_pod_spec(MANIFEST % 8000)
    assert pod.termination_grace_period_seconds == 40
    assert pod.container.lifecycle.pre_stop.sleep.seconds == 5
    assert pod.container.port(pod.container.liveness_probe) == 8000
    assert pod.container.liveness_probe == Probe(HttpGet("http", "/live"), 0, 1, 40, 3, 1)
    bare = read_pod_spec("{kind: Pod, spec: {containers: [{name: c, livenessProbe: {httpGet: {port: 80}}, image: i}]}}")
    assert bare.termination_grace_period_seconds == 30
    assert bare.container.liveness_probe == Probe(HttpGet(80, "/"), 0, 10, 1, 3, 1)


@pytest.mark.parametrize(
    ("manifest", "part"),
    [
        ("{kind: Pod, spec: {containers: [{name: c, livenessProbe: {exec: {command: [ls]}}}]}}", "exec"),
        ("{kind: Pod, spec: {containers: [{name: c, lifecycle: {preStop: {exec: {command: [ls]}}}}]}}", "exec"),
        ("{kind: Pod, spec: {containers: [{name: a}, {name: b}]}}", "length"),
        ("{kind: Service, spec: {ports: []}}", "no document"),
    ],
)
def test_what_is_not_played_is_refused(manifest, part):
    """A probe that would be passed over proves nothing."""
    with pytest.raises(ValueError, match=part):
        read_pod_spec(manifest)


@given(st.integers(1, 4), st.integers(1, 4), st.lists(st.booleans(), max_size=40))
def test_a_verdict_takes_as_many_answers_in_a_row_as_its_threshold(failures, successes, answers):
    """Whatever came before."""
    tally = Tally(Probe(HttpGet(1), failure_threshold=failures, success_threshold=successes))
    for end, answer in enumerate(answers, 1):
        row = next(len(list(same)) for _, same in itertools.groupby(reversed(answers[:end])))
        assert tally.add(answer) is (answer if row >= (successes if answer else failures) else None)


@pytest.mark.parametrize(
    ("status", "success"),
    [(200, True), (204, True), (302, True), (399, True), (400, False), (404, False), (503, False)],
)
def test_200_to_399_is_success(script, status, success):
    """Any other status is failure."""
    script.statuses["/x"] = [status]
    assert is_success(script.port, "/x", 10) is success


def test_no_answer_in_time_is_failure(script):
    """A refused connection, one that is closed without an answer, and one that is accepted and left alone."""
    script.statuses["/nothing"] = [None]
    assert not is_success(script.port, "/nothing", 10)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        port = deaf.getsockname()[1]
        assert not is_success(port, "/", 10)
        deaf.listen()
        assert not is_success(port, "/", 0.05)


def test_nobody_asks_for_liveness_and_readiness_before_the_startup_probe_has_succeeded(script):
    """And nobody asks for startup after that; traffic comes after successThreshold answers."""
    script.statuses["/startup"] = [503, 503, 503, 200]
    script.statuses["/ready"] = [503, 200, 503, 200, 200]
    with kubelet_of(pod_of(script)) as kubelet:
        wait_for(lambda: kubelet.ready)
        asked = [path for _, path in script.asked]
    assert asked[:4] == ["/startup"] * 4
    assert "/startup" not in asked[4:]
    assert asked.count("/ready") >= 5
    assert kubelet.reasons()[:2] == ["Started", "Ready"]
    assert kubelet.restarts == 0


def test_a_startup_probe_that_keeps_failing_kills(script):
    """After failureThreshold answers, whatever liveness would say."""
    script.statuses["/startup"] = [503]
    with kubelet_of(pod_of(script)) as kubelet:
        wait_for(lambda: kubelet.restarts == 1)
        asked = script.count("/startup")
        wait_for(lambda: script.count("/startup") > asked)
    assert kubelet.reasons()[:5] == ["Started", "Unhealthy", "PreStop", "Killing", "Died"]
    assert "startup probe failed 4 times" in kubelet.events[1].message
    assert script.count("/live") == script.count("/ready") == 0


def test_failed_liveness_restarts_at_once_and_then_with_backoff(script):
    """SIGTERM, a new process, its own probes; the next time after a while."""
    script.statuses["/live"] = [200, 503, 503, 200, 503]
    with kubelet_of(pod_of(script, lifecycle=Lifecycle())) as kubelet:
        first = kubelet.process
        wait_for(lambda: kubelet.restarts == 2)
        assert kubelet.process.pid != first.pid
    assert first.returncode == -15
    assert kubelet.reasons().count("BackOff") == 1
    backoff, restarted = (kubelet.events[kubelet.reasons().index("BackOff") + step] for step in (0, 1))
    assert restarted.reason == "Started"
    assert restarted.at_s - backoff.at_s >= 10


def test_a_process_that_ends_by_itself_is_restarted(script):
    """With its exit code in the log."""
    with kubelet_of(pod_of(script), "raise SystemExit(3)") as kubelet:
        wait_for(lambda: kubelet.restarts == 1)
    assert next(event.message for event in kubelet.events if event.reason == "Died") == "exit 3"


def test_the_last_words_are_those_of_the_run_that_died(script, tmp_path):
    """As far as Kubernetes keeps them; the next run begins with an empty file."""
    path = tmp_path / "termination-log"
    says = f"from pathlib import Path; p = Path({str(path)!r}); p.write_text(p.read_text() + 'x' * 5000); exit(3)"
    with kubelet_of(pod_of(script), says, termination_log=path) as kubelet:
        wait_for(lambda: kubelet.reasons().count("Died") == 2)
    messages = [event.message for event in kubelet.events if event.reason == "Died"]
    assert messages == [f"exit 3: {'x' * 4096}"] * 2


def test_failed_readiness_gates_traffic_and_kills_nobody(script):
    """Off after failureThreshold answers, on again after successThreshold; every failed probe is kept."""
    script.statuses["/ready"] = [200, 200, 503, 503, 200, 503, 503, 503, 200, 200]
    with kubelet_of(pod_of(script)) as kubelet:
        wait_for(lambda: kubelet.reasons().count("Ready") == 2)
        assert kubelet.ready
    assert [failure.kind for failure in kubelet.failures] == ["readiness"] * 5
    assert kubelet.reasons() == ["Started", "Ready", "NotReady", "Ready"]
    assert kubelet.restarts == 0


def test_no_probe_before_its_initial_delay(script):
    """Counted from the container's start."""
    probe = Probe(HttpGet(script.port, "/ready"), initial_delay_seconds=6, timeout_seconds=40)
    began_s = time.monotonic()
    with kubelet_of(pod_of(script, startup_probe=None, readiness_probe=probe)) as kubelet:
        wait_for(lambda: kubelet.ready)
    assert next(at_s for at_s, path in script.asked if path == "/ready") - began_s >= 6 * SCALE


def test_without_probes_a_container_is_ready_as_it_starts(script):
    """Nothing to wait for."""
    pod = pod_of(script, startup_probe=None, liveness_probe=None, readiness_probe=None)
    with kubelet_of(pod) as kubelet:
        assert kubelet.ready
    assert script.asked == []


def test_a_deleted_pod_gets_no_traffic_its_hook_sigterm_and_no_successor(script):
    """In this order; liveness is nobody's question any more."""
    with kubelet_of(pod_of(script)) as kubelet:
        wait_for(lambda: kubelet.ready)
        script.statuses["/live"] = [503]
        deletion = threading.Thread(target=kubelet.delete)
        deletion.start()
        wait_for(lambda: "Deleting" in kubelet.reasons())
        wait_for(lambda: not kubelet.ready)
        assert kubelet.process.poll() is None  # the hook sleeps
        deletion.join()
    assert kubelet.process.returncode == -15
    assert kubelet.reasons()[-3:] == ["Deleting", "PreStop", "Killing"]
    hook, killing = kubelet.events[-2:]
    assert killing.at_s - hook.at_s >= 5
    assert kubelet.restarts == 0


def test_who_ignores_sigterm_is_killed_at_the_end_of_the_grace(script):
    """The hook's time is taken from it."""
    with kubelet_of(pod_of(script), STUBBORN) as kubelet:
        wait_for(lambda: kubelet.ready)
        assert kubelet.delete() == -9
    _, hook, killing, killed = kubelet.events[-4:]
    assert [hook.reason, killing.reason, killed.reason] == ["PreStop", "Killing", "Killed"]
    assert killing.message == "within 35 s"
    assert killed.at_s - hook.at_s >= 40
