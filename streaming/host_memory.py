"""How much memory the host can still give to this process. Knows nothing of who asks.

The kernel's word for the machine, or the limit of a control group (a pod's, a container's) where that leaves less.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from streaming import cgroup
from streaming.errors import DeviceError

# Version 2 first; version 1 has the same under other names.
_LIMIT_FILES = (("memory.max", "memory.current", ""), ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"))
# What the kernel takes back before it ends anybody. A memfd's pages are not among them.
_RECLAIMABLE = ("inactive_file", "active_file", "slab_reclaimable")


class HostMemory(NamedTuple):
    """What can be had now; `limit_bytes` is the control group's limit where that decides, else None."""

    available_bytes: int
    limit_bytes: int | None = None


def host_memory(root: str = "") -> HostMemory:
    """The least of what the machine and every control group of this process can still give."""
    found = HostMemory(_machine_bytes(root))
    for folder in cgroup.folders("memory", root):
        for names in _LIMIT_FILES:
            found = _left(folder, *names, found)
    return found


def available_bytes() -> int:
    """What can be had without swapping and within the control group's limit."""
    return host_memory().available_bytes


def check_host_room(weights_bytes: int, reserve_bytes: int, memory: HostMemory) -> None:
    """Whether the weights and `reserve_bytes` (the least KV cache, where it is in host memory) can be had.

    Raises:
        DeviceError: They cannot; it names what is needed, what is available and the shortfall.
    """
    short_bytes = weights_bytes + reserve_bytes - memory.available_bytes
    if short_bytes <= 0:
        return
    cache = f" and the least KV cache {reserve_bytes}" if reserve_bytes else ""
    limit = "" if memory.limit_bytes is None else f" under the memory limit of {memory.limit_bytes}"
    larger = "a larger machine" if memory.limit_bytes is None else "a higher memory limit of the pod or container"
    raise DeviceError(
        f"the weights need {weights_bytes} bytes of host memory{cache}, {memory.available_bytes} are available{limit} "
        f"({short_bytes} short): use a smaller model or {larger}"
    )


def _left(folder: str, limit_name: str, usage_name: str, prefix: str, least: HostMemory) -> HostMemory:
    """What one group can still give, or `least` where that is less or there is no limit."""
    limit, usage = cgroup.read(folder, limit_name), cgroup.read(folder, usage_name)
    if not limit or not usage or limit == "max" or int(limit) - int(usage) >= least.available_bytes:
        return least  # without its statistics, which cost the kernel most
    reclaimable_bytes = _sum((cgroup.read(folder, "memory.stat") or "").splitlines(), prefix)
    left_bytes = max(0, int(limit) - int(usage) + reclaimable_bytes)
    return HostMemory(left_bytes, int(limit)) if left_bytes < least.available_bytes else least


def _machine_bytes(root: str) -> int:
    """MemAvailable: what the kernel believes can be had without swapping."""
    with open(f"{root}/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123 - pathlib costs 10 ms of import
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    raise AssertionError("Linux has MemAvailable since 3.14")


def _sum(lines: Iterable[str], prefix: str) -> int:
    figures = dict(line.split(" ", 1) for line in lines if " " in line)
    return sum(int(figures.get(prefix + name, 0)) for name in _RECLAIMABLE)
