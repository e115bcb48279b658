"""The part of a Kubernetes pod spec that decides over a container's life, read from a manifest.

Takes YAML of a Pod or of what has a pod template (Deployment, StatefulSet, Job); fields have Kubernetes' names, units
(seconds) and defaults. What a probe or hook asks for and nobody here plays is an error; other fields are passed over.
Knows no process.
"""

from __future__ import annotations

import msgspec
import yaml


class HttpGet(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """`httpGet`: a number or a container port's name, and a path."""

    port: int | str
    path: str = "/"


class Probe(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """`startupProbe`, `livenessProbe` or `readinessProbe`."""

    http_get: HttpGet
    initial_delay_seconds: float = 0
    period_seconds: float = 10
    timeout_seconds: float = 1
    failure_threshold: int = 3
    success_threshold: int = 1
    termination_grace_period_seconds: float | None = None


class Sleep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`sleep`: how long a hook takes."""

    seconds: float


class Hook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`preStop`, which may sleep."""

    sleep: Sleep


class Lifecycle(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """`lifecycle` of a container."""

    pre_stop: Hook | None = None


class Port(msgspec.Struct, frozen=True, rename="camel"):
    """One of `ports`."""

    container_port: int
    name: str | None = None


class Container(msgspec.Struct, frozen=True, rename="camel"):
    """One of `containers`."""

    name: str
    ports: tuple[Port, ...] = ()
    startup_probe: Probe | None = None
    liveness_probe: Probe | None = None
    readiness_probe: Probe | None = None
    lifecycle: Lifecycle = Lifecycle()

    def port(self, probe: Probe) -> int:
        """The number of the port that a probe asks.

        Raises:
            ValueError: No port of the container has its name.
        """
        port = probe.http_get.port
        if isinstance(port, int):
            return port
        for declared in self.ports:
            if declared.name == port:
                return declared.container_port
        raise ValueError(f"container {self.name} has no port named {port}")


class PodSpec(msgspec.Struct, frozen=True, rename="camel"):
    """`spec` of a pod with one container."""

    containers: tuple[Container]
    termination_grace_period_seconds: float = 30

    @property
    def container(self) -> Container:
        """The only one."""
        return self.containers[0]


def read_pod_spec(manifest: str) -> PodSpec:
    """The pod spec in the first document of `manifest` that has one.

    Raises:
        ValueError: No document has one, or it has more than one container.
    """
    for document in yaml.safe_load_all(manifest):
        spec = (document or {}).get("spec", {})
        if document and document.get("kind") != "Pod":
            spec = spec.get("template", {}).get("spec", {})
        if "containers" in spec:
            # Quantities of seconds are integers in Kubernetes; fractions are ours, for faster tests.
            return msgspec.convert(spec, PodSpec)
    raise ValueError("no document of the manifest has a pod spec")
