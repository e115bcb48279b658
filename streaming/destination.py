"""Which memory the weights go to, and whether they fit: CUDA is started in the background, first thing.

Gives an `Arena`. A wish that cannot be had becomes another memory, told to `on_fallback` with its reason, or
an error where fallbacks are not allowed. Knows no source and no plan.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from streaming.arena import Arena, HostArena
from streaming.cuda_arena import CudaArena
from streaming.cuda_driver import Cuda, CudaError, DeviceMemory
from streaming.errors import DeviceError
from streaming.messages import ArenaMemory, FellBack
from streaming.options import DestinationOptions
from streaming.process import show_devices

# What the arena's neighbours in GPU memory need: contexts, activations, workspaces.
_HEADROOM = 1.1


class Destination:
    """The memory of one load.

    Args:
        options: What is wished for.
        slot_bytes: Of a staging slot, which is as large as a chunk.
        on_fallback: Told of every fallback.
    """

    def __init__(self, options: DestinationOptions, slot_bytes: int, on_fallback: Callable[[FellBack], None]):
        self._options = options
        self._slot_bytes = slot_bytes
        self._on_fallback = on_fallback
        self._one_at_a_time = threading.Lock()
        self._told: set[str] = set()
        self._cuda: Cuda | None = None
        self._obstacle = ""
        self._failure: Exception | None = None
        self._starting = threading.Thread(target=self._start, name="cuda-start", daemon=True)
        if options.device == "cuda":
            self._starting.start()

    def create(self, nbytes: int, reserve_bytes: int) -> Arena:
        """A new arena for `nbytes` of weights, if as much and `reserve_bytes` beside it fit the device.

        Raises:
            DeviceError: They do not, or there is no such device.
        """
        if self._options.device != "cuda":
            return HostArena.create(nbytes, reserve_bytes)
        cuda = self._started()
        if self._obstacle:
            self._fall_back("host-arena", f"{cuda.name()} cannot share its memory: {self._obstacle}")
            return HostArena.create(nbytes)
        check_room(nbytes, reserve_bytes, cuda.memory())
        try:
            handle, fd, size_bytes = cuda.create_exportable(nbytes)
        except CudaError as error:
            self._fall_back("host-arena", f"{cuda.name()} gave no memory that can be shared ({error.name})")
            return HostArena.create(nbytes)
        return self._mapped(cuda, handle, fd, ArenaMemory("device", size_bytes))

    def reopen(self, fd: int, memory: ArenaMemory) -> Arena:
        """The arena that another loader made.

        Raises:
            DeviceError: It cannot be mapped.
        """
        if memory.kind == "host":
            return HostArena(fd, memory)
        cuda = self._started()
        return self._mapped(cuda, cuda.import_exported(fd), fd, memory)

    def _mapped(self, cuda: Cuda, handle: int, fd: int, memory: ArenaMemory) -> CudaArena:
        return CudaArena(
            cuda,
            fd,
            memory,
            cuda.map(handle, memory.nbytes, writable=True),
            slot_bytes=self._slot_bytes,
            on_unpinned=lambda reason: self._fall_back("pageable-slots", reason),
        )

    def _start(self) -> None:
        """Find the GPU, see what it allows, and only then make a context on it."""
        try:
            show_devices(self._options.visible_devices)
            self._cuda = Cuda.find()
            self._obstacle = self._cuda.obstacle()
            if not self._obstacle:
                self._cuda.start()
        except Exception as error:  # noqa: BLE001 - it is raised again where the device is needed
            self._failure = error

    def _started(self) -> Cuda:
        self._starting.join()
        if self._failure is not None:
            raise self._failure
        assert self._cuda is not None  # one or the other
        if not self._obstacle:
            self._cuda.use_here()
        return self._cuda

    def _fall_back(self, what: str, reason: str) -> None:
        """Say so once per kind: all writers fail alike.

        Raises:
            DeviceError: Fallbacks are not allowed.
        """
        if not self._options.host_fallback:
            raise DeviceError(f"{reason}: allow the fallback (--pinned-host-fallback), or use another GPU")
        with self._one_at_a_time:
            if what in self._told:
                return
            self._told.add(what)
        self._on_fallback(FellBack(what=what, reason=reason))


def check_room(weights_bytes: int, reserve_bytes: int, memory: DeviceMemory) -> None:
    """Whether weights x 1.1 and `reserve_bytes` fit what is free.

    Raises:
        DeviceError: They do not; it names what is needed, what is free and the shortfall.
    """
    needed_bytes = int(weights_bytes * _HEADROOM) + reserve_bytes
    if needed_bytes > memory.free_bytes:
        raise DeviceError(
            f"the GPU has {memory.free_bytes} bytes free and the model needs {needed_bytes} (weights x {_HEADROOM} and "
            f"{reserve_bytes} for the least KV cache), {needed_bytes - memory.free_bytes} short: "
            "use a smaller model, a lower --max-model-len or a larger GPU"
        )
