"""The weights' memory as the engine computes with it: one flat tensor of bytes, on the engine's device.

Takes what the arena's descriptor stands for. Host memory is served in place on a CPU and copied to a GPU once
it has landed; device memory is served in place. Knows no tensor's name.
"""

from __future__ import annotations

import mmap
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from app.messages import StagedShard
from streaming.cuda_driver import Cuda, CudaError
from streaming.errors import DeviceError
from streaming.host_memory import available_bytes
from streaming.messages import FellBack

_PIECE_BYTES = 256 << 20
_STAT_BLOCK_BYTES = 512  # whatever the file system's own are


class Weights(Protocol):
    """`flat` is (nbytes,) uint8; its bytes are the weights once `landed` has returned."""

    flat: torch.Tensor

    def coming_bytes(self) -> int:
        """How much host memory they have yet to take; what has landed is missing from the machine's already."""

    def landed(self, shards: Sequence[StagedShard], fds: Sequence[int]) -> None:
        """Every byte is in the arena, or in `shards`, open as `fds`: do what is left to do."""


class InPlace:
    """The arena itself; `fd`, which is kept, tells how much of one in host memory has landed."""

    def __init__(self, flat: torch.Tensor, fd: int | None = None):
        self.flat = flat
        self._fd = fd

    def coming_bytes(self) -> int:
        """The pages that nobody has written yet; none of a GPU's arena."""
        return 0 if self._fd is None else max(0, self.flat.nbytes - os.fstat(self._fd).st_blocks * _STAT_BLOCK_BYTES)

    def landed(self, shards: Sequence[StagedShard], fds: Sequence[int]) -> None:
        """Nothing is left to do."""


class CopiedToGpu:
    """GPU memory of the engine's own, filled from a host arena.

    Args:
        host: The arena, (nbytes,) uint8.
        cuda: The GPU that the copy lives on.
        on_fallback: Told if the arena cannot be pinned; may raise.
    """

    def __init__(self, host: torch.Tensor, cuda: Cuda, on_fallback: Callable[[FellBack], None]):
        self.flat = own_memory(host.nbytes, "cuda")
        self._host = host
        # Pages come into being as they are pinned, which is why it is done before they are written.
        try:
            cuda.register(host.data_ptr(), host.nbytes)
        except CudaError as error:
            reason = f"{host.nbytes} bytes of the host arena could not be pinned ({error.name})"
            on_fallback(FellBack(what="pageable-arena", reason=reason))
            self._pinned = False
        else:
            self._pinned = True

    def coming_bytes(self) -> int:
        """None: pages are taken as they are pinned, and a GPU's cache takes none."""
        return 0

    def landed(self, shards: Sequence[StagedShard], fds: Sequence[int]) -> None:  # noqa: ARG002 - the protocol's
        """Copy everything, in pieces that need little memory of the driver's."""
        for start in range(0, self._host.nbytes, _PIECE_BYTES):
            piece = slice(start, start + _PIECE_BYTES)
            self.flat[piece].copy_(self._host[piece], non_blocking=self._pinned)
        torch.cuda.synchronize()


def own_memory(nbytes: int, device: str) -> torch.Tensor:
    """Memory of the engine's own for weights that are copied, (nbytes,) uint8 on "cpu" or "cuda".

    Raises:
        DeviceError: The device has not as much.
    """
    if device == "cpu" and nbytes > (free_bytes := available_bytes()):
        raise _no_room(nbytes, free_bytes)
    try:
        return torch.empty(nbytes, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError as error:
        raise _no_room(nbytes, torch.cuda.mem_get_info()[0]) from error


def _no_room(nbytes: int, free_bytes: int) -> DeviceError:
    return DeviceError(
        f"the weights need {nbytes} bytes of the device's memory, {free_bytes} are free: "
        "use a smaller model or a larger device"
    )


def in_place_on_gpu(address: int, nbytes: int) -> InPlace:
    """GPU memory that is mapped at `address` already."""
    return InPlace(torch.as_tensor(_DeviceBytes(address, nbytes), device="cuda"))


def from_host(fd: int, nbytes: int, cuda: Cuda | None, on_fallback: Callable[[FellBack], None]) -> Weights:
    """A host arena, in place on a CPU and copied to the GPU if there is one; takes `fd`.

    Raises:
        DeviceError: It cannot be mapped, or what `on_fallback` makes of it.
    """
    if cuda is None:
        return InPlace(_map_host(fd, nbytes, writable=False), fd)
    flat = _map_host(fd, nbytes, writable=True)  # only what is writable can be pinned
    os.close(fd)
    return CopiedToGpu(flat, cuda, on_fallback)


class _DeviceBytes:
    """GPU memory as torch takes it from others."""

    def __init__(self, address: int, nbytes: int):
        self.__cuda_array_interface__: dict[str, Any] = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (address, False),  # torch knows no read-only tensors; the mapping itself is
            "version": 3,
        }


def _map_host(fd: int, nbytes: int, *, writable: bool) -> torch.Tensor:
    """(nbytes,) uint8. The tensor keeps the mapping alive."""
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    try:
        mapping = mmap.mmap(fd, nbytes, flags=mmap.MAP_SHARED, prot=protection)
    except (OSError, ValueError) as error:
        raise DeviceError(f"cannot map the arena of {nbytes} bytes: {error}") from error
    with warnings.catch_warnings():
        # Nothing writes to a parameter; torch cannot know that and warns of any read-only buffer.
        warnings.filterwarnings("ignore", message="The given buffer is not writable", category=UserWarning)
        return torch.frombuffer(mapping, dtype=torch.uint8)
