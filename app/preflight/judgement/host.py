"""The machine beside its GPU, from its figures: memory, disk, limits, processors.

The room guard for host memory is the loader's. What is only good to know is always ok.
"""

from __future__ import annotations

from dataclasses import dataclass

from app.preflight.finding import DEVICE, Finding, failed, ok, shown_bytes, skipped, warning
from app.preflight.judgement.device import Need, short
from streaming.errors import DeviceError
from streaming.host_memory import HostMemory, check_host_room

# Below it a GPU waits for the processes that feed it: server, loader and engine are busy at once while it starts.
_FEW_CPUS = 4
# What server, loader and engine take beside weights and cache on a CPU: mostly libraries and activations.
_PROCESSES_BYTES = 1 << 30
# Descriptors that each process has open besides its connections: libraries, pipes, event loops.
_OWN_FILES = 64


@dataclass(frozen=True)
class Host:
    """What the kernel says; None where it says nothing. A limit of None is none.

    `cpus` is what the control group's quota and the affinity leave. `disk_is_memory`: `disk_folder` is a tmpfs.
    """

    memory: HostMemory
    cpus: float
    disk_folder: str
    disk_free_bytes: int | None
    disk_is_memory: bool
    shared_memory_bytes: int | None
    memlock_bytes: int | None
    open_files: int | None
    nvme: tuple[str, ...]
    container: str


@dataclass(frozen=True)
class Demand:
    """What these settings ask of it, in bytes; `staged_bytes` is None where nothing is staged, or not known how much.

    `cache_dir` is the folder of the cache; None is without one.
    """

    on_gpu: bool
    is_staged: bool
    staged_bytes: int | None
    chunks_bytes: int
    slots_bytes: int
    connections: int
    cache_dir: str | None = None


def judge_memory(memory: HostMemory, demand: Demand, need: Need | None, *, weights_in_host: bool) -> Finding:
    """Weights (where they lie in host memory) by the loader's guard, and the chunks in flight beside them."""
    if weights_in_host and need is None:
        return skipped("host-memory", "it is not known how much the weights take")
    need = need or Need(0, 0)
    weights_bytes = need.weights_bytes if weights_in_host else 0
    cache_bytes = 0 if demand.on_gpu else need.cache_bytes
    figures = {
        "available_bytes": memory.available_bytes,
        "limit_bytes": memory.limit_bytes,
        "weights_bytes": weights_bytes,
        "least_kv_cache_bytes": cache_bytes,
        "chunks_bytes": demand.chunks_bytes,
    }
    try:
        check_host_room(weights_bytes, cache_bytes, memory)
    except DeviceError as error:
        return short("host-memory", error, need, **figures)
    limit = "" if memory.limit_bytes is None else f" under a limit of {shown_bytes(memory.limit_bytes)}"
    detail = (
        f"{shown_bytes(memory.available_bytes)} are available{limit}, weights and least KV cache take "
        f"{shown_bytes(weights_bytes + cache_bytes)}, chunks in flight up to {shown_bytes(demand.chunks_bytes)}"
    )
    left_bytes = memory.available_bytes - weights_bytes - cache_bytes
    if not demand.on_gpu and left_bytes < _PROCESSES_BYTES:
        remedy = f"leave about {shown_bytes(_PROCESSES_BYTES)} beside them, for server, loader and engine themselves"
        return warning("host-memory", detail, remedy, **figures)
    if demand.chunks_bytes > left_bytes:
        remedy = "raise the memory limit, or bound the chunks with --memory-limit"
        return warning("host-memory", detail, remedy, **figures)
    return ok("host-memory", detail, **figures)


def judge_host(host: Host, demand: Demand) -> list[Finding]:
    """Everything but memory."""
    return [
        _disk(host, demand),
        _shared_memory(host, demand),
        _pinned_memory(host, demand),
        _open_files(host, demand),
        _cpus(host, demand),
        _nvme(host, demand),
        ok("container", host.container, runtime=host.container),
    ]


def _disk(host: Host, demand: Demand) -> Finding:
    figures = {
        "folder": host.disk_folder,
        "free_bytes": host.disk_free_bytes,
        "is_memory": host.disk_is_memory,
        "needed_bytes": demand.staged_bytes if demand.is_staged else 0,
    }
    if host.disk_free_bytes is None:
        if demand.is_staged:
            remedy = "name a folder that exists with TMPDIR"
            return failed("disk", DEVICE, f"{host.disk_folder} cannot be looked at", remedy, **figures)
        return ok("disk", f"{host.disk_folder} cannot be looked at; direct-gpu needs none", **figures)
    free = f"{host.disk_folder} has {shown_bytes(host.disk_free_bytes)} free"
    if not demand.is_staged:
        return ok("disk", f"{free}; nothing is staged there", **figures)
    if demand.staged_bytes is None:
        return skipped("disk", f"{free}; it is not known how much the shards take")
    detail = f"{free}, the shards take {shown_bytes(demand.staged_bytes)}"
    if demand.staged_bytes > host.disk_free_bytes:
        remedy = "make room, name another folder with TMPDIR, or use --load-strategy direct-gpu"
        return failed("disk", DEVICE, detail, remedy, **figures)
    if host.disk_is_memory:
        remedy = "name a folder on a disk with TMPDIR: what lies in a tmpfs counts against the memory limit"
        return warning("disk", f"{detail}, in memory (tmpfs)", remedy, **figures)
    return ok("disk", detail, **figures)


def _shared_memory(host: Host, demand: Demand) -> Finding:
    nbytes = host.shared_memory_bytes
    size = "it is not there" if nbytes is None else f"{shown_bytes(nbytes)} are free"
    weights = "" if demand.on_gpu else ": the weights are a memfd, which counts against the memory limit only"
    return ok("shared-memory", f"/dev/shm is not used, {size}{weights}", dev_shm_free_bytes=nbytes)  # noqa: S108


def _pinned_memory(host: Host, demand: Demand) -> Finding:
    if not demand.on_gpu or not demand.slots_bytes:
        return skipped("pinned-memory", "nothing is pinned")
    figures = {"memlock_bytes": host.memlock_bytes, "slots_bytes": demand.slots_bytes}
    limit = "unlimited" if host.memlock_bytes is None else shown_bytes(host.memlock_bytes)
    detail = f"`ulimit -l` is {limit}, {shown_bytes(demand.slots_bytes)} of staging slots are to be pinned"
    if host.memlock_bytes is not None and host.memlock_bytes < demand.slots_bytes:
        # A container's is 8 MiB as a rule, and the driver pins without asking it: no reason to look twice.
        detail += ": drivers pin without asking it; raise it if the log says pageable-slots"
    return ok("pinned-memory", detail, **figures)


def _open_files(host: Host, demand: Demand) -> Finding:
    figures = {"open_files": host.open_files, "connections": demand.connections}
    limit = "unlimited" if host.open_files is None else str(host.open_files)
    detail = f"`ulimit -n` is {limit}, up to {demand.connections} connections are expected"
    if host.open_files is not None and host.open_files < demand.connections + _OWN_FILES:
        return warning("open-files", detail, "raise `ulimit -n`, or lower --max-waiting-requests", **figures)
    return ok("open-files", detail, **figures)


def _nvme(host: Host, demand: Demand) -> Finding:
    use = "not used" if demand.cache_dir is None else f"the cache is in {demand.cache_dir}"
    return ok("nvme", f"{', '.join(host.nvme) or 'none'} ({use})", devices=list(host.nvme), cache_dir=demand.cache_dir)


def _cpus(host: Host, demand: Demand) -> Finding:
    detail = f"{host.cpus:g} processors by affinity and quota"
    if demand.on_gpu and host.cpus < _FEW_CPUS:
        remedy = f"give the container at least {_FEW_CPUS}: imports, reads and copies run at once while it starts"
        return warning("cpus", detail, remedy, cpus=host.cpus)
    return ok("cpus", detail, cpus=host.cpus)
