"""What the restricted profile of Kubernetes' Pod Security Standards has against a pod.

Takes a pod's spec, gives one line for every rule that it breaks. Stricter in one point: the root file system is
read-only, which the profile does not ask for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]
_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
_PROFILES = {"RuntimeDefault", "Localhost"}


def offences(spec: Json) -> list[str]:
    """Every rule that the pod breaks."""
    return [*_of_pod(spec), *(line for container in _containers(spec) for line in _of_container(spec, container))]


def _containers(spec: Json) -> Iterator[Json]:
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        yield from spec.get(kind, [])


def _of_pod(spec: Json) -> Iterator[str]:
    for namespace in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(namespace):
            yield namespace
    for volume in spec.get("volumes", []):
        yield from sorted(f"volume {kind}" for kind in volume.keys() - {"name"} - _VOLUMES)
    if spec.get("securityContext", {}).get("sysctls"):
        yield "sysctls"


def _of_container(spec: Json, container: Json) -> Iterator[str]:
    context: Json = {**spec.get("securityContext", {}), **container.get("securityContext", {})}
    capabilities = context.get("capabilities", {})
    rules = {
        "privileged": not context.get("privileged"),
        "allowPrivilegeEscalation": context.get("allowPrivilegeEscalation") is False,
        "runAsNonRoot": context.get("runAsNonRoot") is True,
        "runAsUser": context.get("runAsUser") != 0,
        "seccompProfile": context.get("seccompProfile", {}).get("type") in _PROFILES,
        "capabilities.drop": "ALL" in capabilities.get("drop", []),
        "capabilities.add": set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"},
        "procMount": context.get("procMount", "Default") == "Default",
        "hostPort": not any(port.get("hostPort") for port in container.get("ports", [])),
        "readOnlyRootFilesystem": context.get("readOnlyRootFilesystem") is True,
    }
    return (f"{container['name']}: {rule}" for rule, kept in rules.items() if not kept)
