"""Which device a server runs on, and which GPU its processes may see.

Takes the wish and the environment, gives plain values. Knows no driver: whether the GPU can be used is for the
loader to find out.
"""

from __future__ import annotations

import os.path
from collections.abc import Mapping

import msgspec

from app.errors import UsageError

_VISIBLE = "CUDA_VISIBLE_DEVICES"
# What NVIDIA's driver shows of itself, on a node and in a container that was given a GPU.
_DRIVER_SIGNS = ("/dev/nvidiactl", "/proc/driver/nvidia/version")


class Device(msgspec.Struct, frozen=True):
    """`kind` is "cpu" or "cuda"; `visible` is the one GPU that loader and engine see, as CUDA_VISIBLE_DEVICES has it.

    Only one is shown to them: CUDA's start takes longer with each GPU that it sees.
    """

    kind: str
    visible: str


def choose_device(wish: str, environ: Mapping[str, str]) -> Device:
    """The device that `wish` ("auto", "cpu", "cuda" or "cuda:N", counted among the visible GPUs) means here.

    Raises:
        UsageError: Fewer GPUs are visible.
    """
    listed = environ.get(_VISIBLE)
    visible = None if listed is None else [name.strip() for name in listed.split(",") if name.strip() not in {"", "-1"}]
    if wish == "auto":
        wish = "cuda" if visible != [] and any(map(os.path.exists, _DRIVER_SIGNS)) else "cpu"
    kind, _, number = wish.partition(":")
    if kind == "cpu":
        return Device("cpu", "")
    index = int(number or 0)
    if visible is None:
        return Device("cuda", str(index))
    if index >= len(visible):
        raise UsageError(
            f"engine.device={wish}: {_VISIBLE}={listed} shows {len(visible)} GPUs; use auto, cpu or a lower N"
        )
    return Device("cuda", visible[index])
