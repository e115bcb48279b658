"""A kubelet as far as a container can tell: it probes, gates traffic, restarts and ends one process.

Takes a pod spec and a way to start the container's process, gives what became of it: restarts, readiness, a log of
events. Its rules are those of Kubernetes' prober and runtime manager. It leaves out the jitter with which a restarted
kubelet begins to probe, and redirects. Knows nothing of the program it runs.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.pod_spec import PodSpec, Probe
from tests.probing import Tally, is_success

_TICK_S = 0.005
# A killed container gets at least so long after SIGTERM, whatever a hook took of the grace.
_LEAST_GRACE_S = 2.0
_FIRST_BACKOFF_S = 10.0
_LONGEST_BACKOFF_S = 300.0
# Of a termination message no more is kept.
_MESSAGE_BYTES = 4096


@dataclass(frozen=True)
class Event:
    """What happened, and when (seconds since the pod began, unscaled)."""

    at_s: float
    reason: str
    message: str = ""


@dataclass(frozen=True)
class Failure:
    """One probe that a running container did not answer as it should: which run of it, and when by the clock on the wall."""

    kind: str
    run: int
    unix_s: float


@dataclass(eq=False)
class _Instance:
    """One run of the container."""

    process: subprocess.Popen[bytes]
    run: int
    began_s: float
    over: threading.Event = field(default_factory=threading.Event)
    started: bool = False
    ready: bool = False
    condemned: tuple[str, float] | None = None  # why it is to be killed, and its grace
    threads: list[threading.Thread] = field(default_factory=list)


class Kubelet:
    """Runs a pod for the length of a `with` block.

    Args:
        pod: What to do with it.
        start: Starts the container's process; called anew for every restart.
        scale: What every duration of the spec is multiplied by: 0.1 lives ten times faster.
        termination_log: The file in the place of the container's terminationMessagePath; every run has an empty one.
    """

    def __init__(
        self,
        pod: PodSpec,
        start: Callable[[], subprocess.Popen[bytes]],
        *,
        scale: float = 1.0,
        termination_log: Path | None = None,
    ):
        self.restarts = 0
        self.events: list[Event] = []
        self.failures: list[Failure] = []
        self._pod = pod
        self._start = start
        self._scale = scale
        self._termination_log = termination_log
        self._began_s = time.monotonic()
        self._backoff_s = 0.0
        self._deleting = threading.Event()
        self._is_leaving = False
        self._running = threading.Event()
        self._instance: _Instance | None = None
        self._thread = threading.Thread(target=self._sync, daemon=True)

    def __enter__(self) -> Self:
        """Start the container."""
        self._thread.start()
        self._running.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill what still runs."""
        self._is_leaving = True
        self._deleting.set()
        self._thread.join()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The container's process of now, or the last one."""
        return self._current.process

    @property
    def ready(self) -> bool:
        """Whether services send it traffic: its container is ready, and nobody deletes the pod."""
        return self._current.ready and not self._deleting.is_set()

    def reasons(self) -> list[str]:
        """What happened, in order."""
        return [event.reason for event in self.events]

    def delete(self) -> int:
        """Delete the pod as `kubectl delete` does: no traffic from now on, preStop, SIGTERM, grace, SIGKILL.

        Gives the container's exit code, negative where a signal ended it.
        """
        self._say("Deleting")
        self._deleting.set()
        self._thread.join()
        return self._current.process.wait()

    @property
    def _current(self) -> _Instance:
        assert self._instance is not None  # the pod runs
        return self._instance

    def _say(self, reason: str, message: str = "") -> None:
        self.events.append(Event((time.monotonic() - self._began_s) / self._scale, reason, message))

    def _run_container(self, run: int) -> _Instance:
        container = self._pod.container
        if self._termination_log is not None:
            self._termination_log.write_bytes(b"")
        instance = _Instance(self._start(), run, time.monotonic())
        instance.started = container.startup_probe is None
        instance.ready = instance.started and container.readiness_probe is None
        self._say("Started")
        probes = (
            ("startup", container.startup_probe, self._probe_startup),
            ("liveness", container.liveness_probe, self._probe_liveness),
            ("readiness", container.readiness_probe, self._probe_readiness),
        )
        for kind, probe, judge in probes:
            if probe is not None:
                thread = threading.Thread(target=self._probe, args=(instance, kind, probe, judge), daemon=True)
                instance.threads.append(thread)
                thread.start()
        return instance

    def _sync(self) -> None:
        """Restart what has ended, kill what its probes condemned, until the pod is deleted.

        One thread starts and ends every process: who asked the kernel to die with its parent dies with this thread.
        """
        self._instance = self._run_container(0)
        self._running.set()
        while not self._deleting.wait(_TICK_S):
            instance = self._current
            if instance.condemned is not None:
                reason, grace_s = instance.condemned
                self._say("Unhealthy", reason)
                self._kill(instance, grace_s)
            if instance.process.poll() is not None:
                self._end(instance)
                self._say("Died", f"exit {instance.process.returncode}{self._last_words()}")
                self._restart()
        if not self._is_leaving:
            self._kill(self._current, self._pod.termination_grace_period_seconds)
        self._end(self._current)

    def _last_words(self) -> str:
        """The container's termination message."""
        words = self._termination_log.read_bytes()[:_MESSAGE_BYTES] if self._termination_log else b""
        return f": {words.decode()}" if words else ""

    def _restart(self) -> None:
        """The first at once, the next after 10 s, 20 s and so on."""
        if self._backoff_s:
            self._say("BackOff")
        if self._deleting.wait(self._backoff_s * self._scale):
            return
        self._backoff_s = min(_LONGEST_BACKOFF_S, self._backoff_s * 2 or _FIRST_BACKOFF_S)
        self._instance = self._run_container(self.restarts + 1)
        self.restarts += 1  # once it runs

    def _kill(self, instance: _Instance, grace_s: float) -> None:
        """preStop, SIGTERM, SIGKILL at the grace's end; the hook's time is the grace's, too."""
        hook = self._pod.container.lifecycle.pre_stop
        if hook is not None and instance.process.poll() is None:
            hook_s = min(hook.sleep.seconds, grace_s)
            self._say("PreStop")
            time.sleep(hook_s * self._scale)
            grace_s -= hook_s
        grace_s = max(grace_s, _LEAST_GRACE_S)
        self._say("Killing", f"within {grace_s:g} s")
        with contextlib.suppress(ProcessLookupError):
            instance.process.terminate()
        try:
            instance.process.wait(grace_s * self._scale)
        except subprocess.TimeoutExpired:
            self._say("Killed", "its grace was over")
            instance.process.kill()
            instance.process.wait()

    def _end(self, instance: _Instance) -> None:
        """Nobody probes it any more."""
        instance.over.set()
        instance.ready = False
        for thread in instance.threads:
            thread.join()
        if instance.process.poll() is None:
            instance.process.kill()
            instance.process.wait()

    def _probe(
        self, instance: _Instance, kind: str, probe: Probe, judge: Callable[[_Instance, Probe, bool], bool]
    ) -> None:
        """Ask once a period until the instance ends or `judge` has seen enough."""
        tally = Tally(probe)
        port = self._pod.container.port(probe)
        due_s = time.monotonic()
        while not instance.over.wait(max(0.0, due_s - time.monotonic())):
            due_s = max(due_s + probe.period_seconds * self._scale, time.monotonic())
            waits_for_startup = not instance.started and judge != self._probe_startup
            is_early = time.monotonic() - instance.began_s < probe.initial_delay_seconds * self._scale
            if waits_for_startup or is_early:
                due_s = min(due_s, time.monotonic() + _TICK_S)
                continue
            answered = is_success(port, probe.http_get.path, probe.timeout_seconds * self._scale)
            if not answered and instance.process.poll() is None:
                self.failures.append(Failure(kind, instance.run, time.time()))
            verdict = tally.add(answered)
            if verdict is not None and not instance.over.is_set() and not judge(instance, probe, verdict):
                return

    def _probe_startup(self, instance: _Instance, probe: Probe, success: bool) -> bool:
        if success:
            instance.started = True
            instance.ready = self._pod.container.readiness_probe is None
        else:
            self._condemn(instance, probe, "startup")
        return False

    def _probe_liveness(self, instance: _Instance, probe: Probe, success: bool) -> bool:
        """A pod that is being deleted is not restarted, so nobody asks any more whether it lives."""
        if self._deleting.is_set():
            return False
        if not success:
            self._condemn(instance, probe, "liveness")
        return success

    def _probe_readiness(self, instance: _Instance, _probe: Probe, success: bool) -> bool:
        if instance.ready is not success:
            instance.ready = success
            self._say("Ready" if success else "NotReady")
        return True

    def _condemn(self, instance: _Instance, probe: Probe, kind: str) -> None:
        grace_s = probe.termination_grace_period_seconds
        if grace_s is None:
            grace_s = self._pod.termination_grace_period_seconds
        if not self._deleting.is_set():
            instance.condemned = f"{kind} probe failed {probe.failure_threshold} times", grace_s
