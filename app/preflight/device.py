"""The GPU as the driver shows it, and torch as its files show it; importing torch would take seconds.

Gives figures. Starts the driver in this process, as the loader does.
"""

from __future__ import annotations

import importlib.util
import re
from contextlib import suppress
from pathlib import Path

from app.preflight.judgement.device import Gpu, Torch
from streaming.cuda_driver import Cuda, DeviceMemory
from streaming.errors import DeviceError
from streaming.process import show_devices

_DRIVER_FILE = Path("/proc/driver/nvidia/version")
_DRIVER_VERSION = re.compile(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)\s")
_ASSIGNED = re.compile(r"^(\w+)(?:\s*:[^=]+)?\s*=\s*['\"]([^'\"]+)['\"]", re.MULTILINE)


def look_at_gpu(visible: str) -> Gpu:
    """The one GPU that loader and engine would see.

    Raises:
        DeviceError: There is no driver, or no such GPU.
    """
    show_devices(visible)
    cuda = Cuda.find()
    memory, failure = _memory(cuda)
    return Gpu(
        name=cuda.name(),
        compute_capability=cuda.compute_capability(),
        cuda_version=cuda.cuda_version(),
        driver_version=_driver_version(),
        compute_mode=cuda.compute_mode(),
        obstacle=cuda.obstacle(),
        memory=memory,
        failure=failure,
    )


def look_at_torch() -> Torch | None:
    """The torch that the engine would import, None if there is none."""
    with suppress(ImportError, OSError, ValueError):
        spec = importlib.util.find_spec("torch")
        if spec is not None and spec.origin is not None:
            return torch_of((Path(spec.origin).parent / "version.py").read_text(encoding="utf-8"))
    return None


def torch_of(version_py: str) -> Torch:
    """What torch/version.py says."""
    said = dict(_ASSIGNED.findall(version_py))
    return Torch(said.get("__version__", "unknown"), said.get("cuda"))


def driver_of(version_text: str) -> str | None:
    """The driver's version in the text of /proc/driver/nvidia/version, whichever module wrote it."""
    found = _DRIVER_VERSION.search(version_text)
    return found[1] if found else None


def _memory(cuda: Cuda) -> tuple[DeviceMemory | None, str]:
    """What is free beside the context that this takes, as the loader sees it; or why there is no context."""
    try:
        cuda.start()
        return cuda.memory(), ""
    except DeviceError as error:
        return None, str(error)


def _driver_version() -> str | None:
    with suppress(OSError):
        return driver_of(_DRIVER_FILE.read_text(encoding="utf-8", errors="replace"))
    return None
