"""The machine as the kernel shows it: memory, disk, limits, processors, container.

Gives figures; what cannot be read is None. Takes the environment, reads none itself.
"""

from __future__ import annotations

import os
import resource
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from app.preflight.judgement.host import Host
from streaming import cgroup
from streaming.host_memory import host_memory

_CONTAINER_SIGNS = (("/.dockerenv", "docker"), ("/run/.containerenv", "podman"))
_CGROUP_SIGNS = ("containerd", "cri-o", "docker", "libpod", "kubepods")


def look_at_host(environ: Mapping[str, str]) -> Host:
    """Everything about it."""
    folder = _staging_folder()
    return Host(
        memory=host_memory(),
        cpus=available_cpus(),
        disk_folder=folder,
        disk_free_bytes=_free_bytes(folder),
        disk_is_memory=_is_memory(folder),
        shared_memory_bytes=_free_bytes("/dev/shm"),  # noqa: S108 - looked at, not written to
        memlock_bytes=_limit(resource.RLIMIT_MEMLOCK),
        open_files=_limit(resource.RLIMIT_NOFILE),
        most_open_files=_hard_limit(resource.RLIMIT_NOFILE),
        nvme=tuple(sorted(path.name for path in Path("/sys/block").glob("nvme*"))),
        container=_container(environ),
    )


def available_cpus(root: str = "") -> float:
    """Processors by affinity, or by a control group's quota where that is less."""
    cpus = float(len(os.sched_getaffinity(0)))
    for folder in cgroup.folders("cpu", root):
        quota = (cgroup.read(folder, "cpu.max") or "").split()
        if not quota:
            quota = [cgroup.read(folder, name) or "" for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
        if len(quota) == 2 and all(text.isdigit() for text in quota) and int(quota[1]):
            cpus = min(cpus, int(quota[0]) / int(quota[1]))
    return round(cpus, 2)


def _staging_folder() -> str:
    """Where host-staging would put shards: TMPDIR, else /tmp or another that can be written to."""
    try:
        return tempfile.gettempdir()
    except OSError:
        return "TMPDIR"


def _free_bytes(folder: str) -> int | None:
    with suppress(OSError):
        status = os.statvfs(folder)
        return status.f_bavail * status.f_frsize
    return None


def _is_memory(folder: str) -> bool:
    """Whether the mount that holds the folder is a tmpfs; the longest mount point above it decides."""
    kinds: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines():
            _, point, kind, *_ = line.split(" ")
            kinds[point] = kind
    path = Path(folder).resolve()
    return next((kinds[str(part)] == "tmpfs" for part in (path, *path.parents) if str(part) in kinds), False)


def _limit(which: int) -> int | None:
    soft, _ = resource.getrlimit(which)
    return None if soft == resource.RLIM_INFINITY else soft


def _hard_limit(which: int) -> int | None:
    _, hard = resource.getrlimit(which)
    return None if hard == resource.RLIM_INFINITY else hard


def _container(environ: Mapping[str, str]) -> str:
    if "KUBERNETES_SERVICE_HOST" in environ:
        return "Kubernetes"
    for path, name in _CONTAINER_SIGNS:
        if Path(path).exists():
            return name
    with suppress(OSError):
        groups = Path("/proc/self/cgroup").read_text(encoding="utf-8", errors="replace")
        return next((sign for sign in _CGROUP_SIGNS if sign in groups), "none that shows")
    return "none that shows"
