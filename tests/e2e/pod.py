"""The server in a pod of this machine: the container of k8s/base under a kubelet that lives faster.

Takes a model's folder; gives the pod, its source, its traffic and its logs. What only waits is scaled: periods of probes, the
hook before SIGTERM, and such limits of the server as a test asks for, from their values in the manifest. What the server takes
its own time for is not: its start, answers to probes, and its end. Knows no test.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import httpx
from msgspec import structs

from app.settings import Settings, commands
from tests.coldstream import ONE_THREAD, Server
from tests.containers import container
from tests.kubelet import Failure, Kubelet
from tests.manifests import environment, named, rendered
from tests.pod_spec import Hook, Lifecycle, PodSpec, Probe, Sleep, read_pod_spec
from tools.blob_server import BlobServer
from tools.blob_server import Hook as SourceHook
from tools.child import running
from tools.ports import free_port

BASE = "base"
# How much faster a pod lives, where nobody says otherwise.
FASTER = 0.1
DRAIN = ("COLDSTREAM_DRAIN_TIMEOUT",)
# Waits between retries are not scaled, so neither is --retry-timeout, of which they are a part.
SOURCE = ("COLDSTREAM_STALL_TIMEOUT", "COLDSTREAM_READ_TIMEOUT", "COLDSTREAM_REQUEST_TIMEOUT")
_LIMITS: dict[str, Callable[[Settings], float]] = {
    "COLDSTREAM_DRAIN_TIMEOUT": lambda settings: settings.server.drain_timeout_s,
    "COLDSTREAM_STALL_TIMEOUT": lambda settings: settings.startup.stall_timeout_s,
    "COLDSTREAM_READ_TIMEOUT": lambda settings: settings.storage.read_timeout_s,
    "COLDSTREAM_REQUEST_TIMEOUT": lambda settings: settings.storage.request_timeout_s,
}


def limit_s(name: str) -> float:
    """What the manifest makes of a limit, in seconds: its own value or the server's default."""
    template = named(BASE, "Deployment", "coldstream")["spec"]["template"]
    variables = environment(BASE, template) | {"COLDSTREAM_MODEL": "az://container/model"}
    return _LIMITS[name](commands.parse(["serve"], variables).settings)


def base_pod(port: int, scale: float = FASTER, limits: tuple[str, ...] = ()) -> PodSpec:
    """The pod of k8s/base, on a port of this machine; its grace is shorter by what hook and limits are."""
    pod = read_pod_spec(rendered(BASE))
    declared = pod.container
    hook_s = declared.lifecycle.pre_stop.sleep.seconds if declared.lifecycle.pre_stop else 0.0
    waits_s = hook_s + sum(limit_s(name) for name in limits if name in DRAIN)
    changed = structs.replace(
        declared,
        ports=tuple(structs.replace(each, container_port=port) for each in declared.ports),
        startup_probe=_as_patient(_faster(declared.startup_probe, scale), scale),
        liveness_probe=_faster(declared.liveness_probe, scale),
        readiness_probe=_faster(declared.readiness_probe, scale),
        lifecycle=Lifecycle(Hook(Sleep(hook_s * scale))),
    )
    grace_s = pod.termination_grace_period_seconds - (1 - scale) * waits_s
    return structs.replace(pod, containers=(changed,), termination_grace_period_seconds=grace_s)


def _faster(probe: Probe | None, scale: float) -> Probe:
    assert probe is not None  # k8s/base has all three
    return structs.replace(probe, period_seconds=probe.period_seconds * scale)


def _as_patient(probe: Probe, scale: float) -> Probe:
    """With as many failures as fill the probe's own time: the server's start is not scaled."""
    return structs.replace(probe, failure_threshold=round(probe.failure_threshold / scale))


class Pod:
    """A pod, its source, and a client that asks for a token whenever traffic may flow."""

    def __init__(self, kubelet: Kubelet, source: BlobServer, port: int, folder: Path):
        self.kubelet, self.source, self.port = kubelet, source, port
        self.url = f"http://127.0.0.1:{port}"
        self.answers: list[tuple[float, int | None]] = []  # time and status of every request for text
        self._folder = folder

    def server(self) -> Server:
        """The process that runs now."""
        return Server(self.kubelet.process.pid, self.port, self._log_path(self.kubelet.restarts))

    def health(self) -> int | None:
        """Status of /health; None where nobody answers."""
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/health", timeout=10).status_code
        return None

    def complete(self) -> int | None:
        """Status of one completion; None where nobody answers."""
        with contextlib.suppress(httpx.TransportError):
            body = {"model": "model", "prompt": [300, 301], "max_tokens": 1}
            return httpx.post(f"{self.url}/v1/completions", json=body, timeout=30).status_code
        return None

    def send_traffic(self, over: threading.Event) -> None:
        """What a service in front of the pod does."""
        while not over.wait(0.05):
            if self.kubelet.ready:
                self.answers.append((time.monotonic(), self.complete()))

    def failures_of_liveness(self) -> list[Failure]:
        """Those of servers that had not failed for good: these say so before they end by themselves."""
        asked = (failure for failure in self.kubelet.failures if failure.kind == "liveness")
        return [failure for failure in asked if failure.unix_s < self._failed_at_s(failure.run)]

    def _failed_at_s(self, run: int) -> float:
        """When a run said why it ends; never, if it did not."""
        records = [json.loads(line) for line in self._log_path(run).read_text().splitlines() if line.startswith("{")]
        times = [datetime.fromisoformat(record["time"]) for record in records if record["level"] == "ERROR"]
        return times[-1].timestamp() if times else math.inf

    def _log_path(self, run: int) -> Path:
        return self._folder / f"log-{run}"


@contextlib.contextmanager
def pod_of(
    model: Path,
    folder: Path,
    *,
    scale: float = FASTER,
    limits: tuple[str, ...] = (),
    limits_scale: float | None = None,
    bytes_per_s: float | None = None,
    hook: SourceHook | None = None,
    mistaken: Callable[[PodSpec], PodSpec] = lambda pod: pod,
) -> Iterator[Pod]:
    """A pod that serves a checkpoint from an HTTP source.

    Args:
        model: The checkpoint's folder.
        folder: Where the pod's volumes and logs are.
        scale: How much faster it lives.
        limits: Variables of the server's limits that are scaled, too; the others are the manifest's own.
        limits_scale: How much faster those are, where it is not `scale`; not for the drain, which is part of the pod's grace.
        bytes_per_s: How much of the model comes.
        hook: The source's.
        mistaken: What is wrong with the manifest.
    """
    port, runs = free_port(), itertools.count()
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(BlobServer(model.parent, bytes_per_s=bytes_per_s, hook=hook))
        own = {
            "COLDSTREAM_MODEL": f"{source.url}/{model.name}",
            "COLDSTREAM_PORT": str(port),
            "COLDSTREAM_TERMINATION_LOG": str(folder / "termination-log"),
            **{name: f"{limit_s(name) * (limits_scale or scale):g}" for name in limits},
        }
        command, environ = container(BASE, "Deployment/coldstream", folder, own)

        def start() -> subprocess.Popen[bytes]:
            log_path = folder / f"log-{next(runs)}"
            return stack.enter_context(running(command, log_path=log_path, env=ONE_THREAD | environ))

        spec = mistaken(base_pod(port, scale, limits))
        kubelet = stack.enter_context(Kubelet(spec, start, termination_log=folder / "termination-log"))
        yield Pod(kubelet, source, port, folder)
