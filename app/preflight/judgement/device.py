"""The GPU and torch, from their figures.

Takes what the driver and torch's own files say. The room guard is the loader's.
"""

from __future__ import annotations

from dataclasses import dataclass

from app.preflight.finding import DEVICE, SERVER, Finding, failed, ok, refused, shown_bytes, skipped, warning
from streaming.cuda_driver import DeviceMemory
from streaming.destination import check_room
from streaming.errors import DeviceError

_PROHIBITED = "PROHIBITED"
_NOT_SHARED = "with host-staging the engine has its memory for itself"
_NO_GPU = "the model runs on the CPU"


@dataclass(frozen=True)
class Gpu:
    """What the driver says. Versions are (major, minor); `obstacle` is why memory cannot be shared, or "".

    `memory` is None where no context could be made; `failure` says why then.
    """

    name: str
    compute_capability: tuple[int, int]
    cuda_version: tuple[int, int]
    driver_version: str | None
    compute_mode: str
    obstacle: str
    memory: DeviceMemory | None
    failure: str = ""


@dataclass(frozen=True)
class Torch:
    """What is installed: its version, and the CUDA that it was built for ("12.8", None for the CPU alone)."""

    version: str
    cuda: str | None


@dataclass(frozen=True)
class Need:
    """Bytes of the weights where they land and of the least KV cache.

    Not `is_guarded` where `serve` does not refuse by these figures: transformers' class has its own, and host-staging
    has no guard.
    """

    weights_bytes: int
    cache_bytes: int
    is_guarded: bool = True


def no_gpu(wish: str, torch: Torch | None) -> list[Finding]:
    """A server on the CPU: well, unless somebody installed torch for a GPU and let the device be found."""
    if wish == "auto" and torch is not None and torch.cuda is not None:
        gpu = warning(
            "gpu",
            "no NVIDIA driver is visible, so --device auto serves on the CPU, though torch is built for CUDA",
            "request nvidia.com/gpu for the container; --device cuda fails instead of serving on the CPU",
        )
    else:
        gpu = skipped("gpu", f"{_NO_GPU} (--device {wish})")
    return [gpu, skipped("gpu-sharing", _NO_GPU)]


def judge_gpu(gpu: Gpu, *, host_fallback: bool, is_shared: bool = True) -> list[Finding]:
    """Whether it can be used, and whether its memory can be shared, which host-staging does not ask (`is_shared`)."""
    figures = {
        "name": gpu.name,
        "compute_capability": _dotted(gpu.compute_capability),
        "driver_version": gpu.driver_version,
        "cuda_version": _dotted(gpu.cuda_version),
        "compute_mode": gpu.compute_mode,
        "is_mig": "MIG" in gpu.name,
    }
    driver = f"driver {gpu.driver_version} " if gpu.driver_version else "driver "
    detail = (
        f"{gpu.name}, compute capability {figures['compute_capability']}, "
        f"{driver}(CUDA {figures['cuda_version']}), compute mode {gpu.compute_mode}"
    )
    if gpu.compute_mode == _PROHIBITED:
        remedy = "have the node's administrator run `nvidia-smi -c DEFAULT`"
        seen = failed("gpu", DEVICE, f"{detail}: nobody may use it", remedy, **figures)
    elif gpu.failure:
        found, _, remedy = gpu.failure.rpartition(": ")
        seen = failed("gpu", DEVICE, f"{detail}: {found}", remedy, **figures)
    else:
        seen = ok("gpu", detail, **figures)
    return [seen, _sharing(gpu, host_fallback=host_fallback) if is_shared else skipped("gpu-sharing", _NOT_SHARED)]


def _sharing(gpu: Gpu, *, host_fallback: bool) -> Finding:
    if not gpu.obstacle:
        return ok("gpu-sharing", "its memory can be shared between processes")
    detail = f"its memory cannot be shared: {gpu.obstacle}"
    if not host_fallback:
        return failed("gpu-sharing", DEVICE, detail, "allow the fallback (--pinned-host-fallback), or use another GPU")
    return warning(
        "gpu-sharing",
        f"{detail}; the weights will lie in host memory, too (host-arena)",
        "set the compute mode to DEFAULT or use a whole GPU, or give the pod memory for the weights",
    )


def judge_torch(torch: Torch | None, gpu: Gpu | None, *, on_gpu: bool) -> Finding:
    """Whether torch is there, and whether the driver is new enough for its CUDA: its major version decides.

    A failure is the engine's: it dies of it four times, and `serve` ends as for a lost process.
    """
    if torch is None:
        return failed(
            "torch", SERVER, "torch is not installed for this Python", "install coldstream with its dependencies"
        )
    figures = {"version": torch.version, "cuda_version": torch.cuda}
    built = f"built for CUDA {torch.cuda}" if torch.cuda else "built without CUDA"
    detail = f"torch {torch.version}, {built}"
    if not on_gpu:
        return ok("torch", detail, **figures)
    if torch.cuda is None:
        return failed("torch", SERVER, detail, "install torch built for CUDA, or use --device cpu", **figures)
    wanted = _version(torch.cuda)
    if gpu is None or wanted is None:
        return ok("torch", detail, **figures)
    detail += f"; the driver has {_dotted(gpu.cuda_version)}"
    if wanted[0] > gpu.cuda_version[0]:
        remedy = f"update the node's driver, or install torch built for CUDA {gpu.cuda_version[0]}"
        return failed("torch", SERVER, detail, remedy, **figures)
    if wanted > gpu.cuda_version:
        remedy = "a driver of the same major version works, but kernels may lack what a newer one has: update it"
        return warning("torch", detail, remedy, **figures)
    return ok("torch", detail, **figures)


def judge_room(memory: DeviceMemory, need: Need) -> Finding:
    """The loader's own room guard."""
    figures = {
        "free_bytes": memory.free_bytes,
        "total_bytes": memory.total_bytes,
        "weights_bytes": need.weights_bytes,
        "least_kv_cache_bytes": need.cache_bytes,
    }
    try:
        check_room(need.weights_bytes, need.cache_bytes, memory)
    except DeviceError as error:
        return short("gpu-memory", error, need, **figures)
    roughly = "" if need.is_guarded else "about "
    return ok(
        "gpu-memory",
        f"{shown_bytes(memory.free_bytes)} of {shown_bytes(memory.total_bytes)} are free, weights take "
        f"{roughly}{shown_bytes(need.weights_bytes)} and the least KV cache {shown_bytes(need.cache_bytes)}",
        **figures,
    )


def short(name: str, error: DeviceError, need: Need, /, **figures: int | None) -> Finding:
    """What a guard says: a failure only where `serve` would ask the same one."""
    finding = refused(name, error, **figures)
    if need.is_guarded:
        return finding
    return warning(name, f"{finding.detail} (roughly: serve finds out as it loads)", finding.action, **figures)


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _version(text: str) -> tuple[int, int] | None:
    major, _, minor = text.partition(".")
    if not (major.isascii() and major.isdigit()):
        return None
    digits = minor.partition(".")[0]
    return int(major), int(digits) if digits.isascii() and digits.isdigit() else 0
