"""The CUDA driver as loader and engine use it: the first visible GPU, exportable memory, copies into it.

Gives plain integers (addresses, handles, streams) and raises `CudaError`. The only file that knows
cuda.bindings. Knows no plan and no chunk. Every call gives up the GIL while the driver works.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any, NamedTuple

from streaming.errors import DeviceError

_COMPUTE_MODES = {0: "DEFAULT", 2: "PROHIBITED", 3: "EXCLUSIVE_PROCESS"}
_NON_BLOCKING_STREAM = 1
_EVENT_WITHOUT_TIMING = 2


class CudaError(DeviceError):
    """One call of the driver failed; `name` is the driver's own name for why."""

    def __init__(self, call: str, name: str):
        super().__init__(f"the GPU's driver failed at {call} ({name}): the kernel log may name an Xid")
        self.name = name


class DeviceMemory(NamedTuple):
    """Free and total bytes of the GPU."""

    free_bytes: int
    total_bytes: int


def import_early() -> None:
    """Import cuda.bindings, a tenth of a second, if this looks like a machine that will need it."""
    if os.access("/dev/nvidiactl", os.F_OK):
        with contextlib.suppress(ImportError):
            import cuda.bindings.driver  # noqa: F401


class Cuda:
    """The first visible GPU. `start` costs a few tenths of a second, mostly without the GIL.

    The context is the primary one, which torch uses too, so that a process never has two.
    """

    def __init__(self) -> None:
        try:
            from cuda.bindings import driver
        except ImportError as error:
            raise DeviceError("cuda-bindings is not installed: install it, or use --device cpu") from error
        self._driver: Any = driver
        self._device: Any = None
        self._context: Any = None

    @classmethod
    def find(cls) -> Cuda:
        """The driver and its first GPU, before any context.

        Raises:
            DeviceError: There is no usable driver or no visible GPU.
        """
        cuda = cls()
        try:
            cuda._call("cuInit", 0)
            count = cuda._call("cuDeviceGetCount")
        except CudaError as error:
            raise DeviceError(f"CUDA cannot start ({error.name}): check the driver, or use --device cpu") from error
        except RuntimeError as error:  # cuda.bindings found no libcuda.so.1
            raise DeviceError("there is no NVIDIA driver on this machine: use --device cpu") from error
        if count == 0:
            raise DeviceError("no GPU is visible: check CUDA_VISIBLE_DEVICES, or use --device cpu")
        cuda._device = cuda._call("cuDeviceGet", 0)
        return cuda

    def start(self) -> None:
        """Create the primary context, or take the one that this process has, for the calling thread."""
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)
        self.use_here()

    def use_here(self) -> None:
        """Make the context current on the calling thread."""
        self._call("cuCtxSetCurrent", self._context)

    def name(self) -> str:
        """The GPU's name; a MIG slice says so in it."""
        raw: bytes = self._call("cuDeviceGetName", 128, self._device)
        return raw.split(b"\0")[0].decode(errors="replace")

    def compute_mode(self) -> str:
        """Who may use the GPU: DEFAULT, PROHIBITED or EXCLUSIVE_PROCESS. Needs no context."""
        mode = self._attribute("COMPUTE_MODE")
        return _COMPUTE_MODES.get(mode, str(mode))

    def compute_capability(self) -> tuple[int, int]:
        """The architecture, (9, 0) for an H100. Needs no context."""
        return self._attribute("COMPUTE_CAPABILITY_MAJOR"), self._attribute("COMPUTE_CAPABILITY_MINOR")

    def cuda_version(self) -> tuple[int, int]:
        """The newest CUDA that the driver knows, (12, 8). Needs no context."""
        version = int(self._call("cuDriverGetVersion"))
        return version // 1000, version % 1000 // 10

    def obstacle(self) -> str:
        """Why memory of this GPU cannot be shared between processes, or an empty string. Needs no context."""
        if self.compute_mode() == "EXCLUSIVE_PROCESS":
            return "its compute mode is EXCLUSIVE_PROCESS, which allows one process only"
        if not self._attribute("VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED"):
            return "it has no virtual memory management"
        if not self._attribute("HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED"):
            return "its memory cannot be exported as a file descriptor"
        return ""

    def memory(self) -> DeviceMemory:
        """What is free now, in bytes."""
        return DeviceMemory(*self._call("cuMemGetInfo"))

    def create_exportable(self, nbytes: int) -> tuple[int, int, int]:
        """New memory of at least `nbytes`: its handle, the file descriptor that keeps it alive, its size in bytes."""
        kind = self._driver.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        properties = self._driver.CUmemAllocationProp()
        properties.type = self._driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        properties.requestedHandleTypes = kind
        properties.location = self._location()
        recommended = self._driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_RECOMMENDED
        granularity = self._call("cuMemGetAllocationGranularity", properties, recommended)
        size_bytes = max(1, -(-nbytes // granularity)) * granularity
        handle = self._call("cuMemCreate", size_bytes, properties, 0)
        return handle, int(self._call("cuMemExportToShareableHandle", handle, kind, 0)), size_bytes

    def import_exported(self, fd: int) -> int:
        """The handle of memory that another process exported. `fd` may be closed afterwards."""
        kind = self._driver.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        handle: int = self._call("cuMemImportFromShareableHandle", fd, kind)
        return handle

    def map(self, handle: int, size_bytes: int, *, writable: bool) -> int:
        """The address at which this process now sees the memory; read-only where the driver knows how."""
        flags = self._driver.CUmemAccess_flags
        address = self._call("cuMemAddressReserve", size_bytes, 0, 0, 0)
        self._call("cuMemMap", address, size_bytes, 0, handle, 0)
        if not writable:
            with contextlib.suppress(CudaError):
                self._allow(address, size_bytes, flags.CU_MEM_ACCESS_FLAGS_PROT_READ)
                return int(address)
        self._allow(address, size_bytes, flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE)
        return int(address)

    def allocate(self, nbytes: int) -> int:
        """Memory of this process alone; its address."""
        return int(self._call("cuMemAlloc", nbytes))

    def free(self, address: int) -> None:
        """Give back what `allocate` gave."""
        self._call("cuMemFree", address)

    def synchronize(self) -> None:
        """Return once the GPU has done everything that this process asked of it."""
        self._call("cuCtxSynchronize")

    def register(self, address: int, nbytes: int) -> None:
        """Pin host memory, so that copies from it run at the bus's rate and without the processor."""
        self._call("cuMemHostRegister", address, nbytes, 0)

    def new_stream(self) -> Any:
        """A stream that waits for no other."""
        return self._call("cuStreamCreate", _NON_BLOCKING_STREAM)

    def new_event(self) -> Any:
        """An event that only says whether it was reached."""
        return self._call("cuEventCreate", _EVENT_WITHOUT_TIMING)

    def copy_to_device(self, address: int, host_address: int, nbytes: int, stream: Any) -> None:
        """Queue a copy; from memory that is not registered it is done with the source when it returns."""
        self._call("cuMemcpyHtoDAsync", address, host_address, nbytes, stream)

    def record(self, event: Any, stream: Any) -> None:
        """Have `event` mark what is queued on `stream` now."""
        self._call("cuEventRecord", event, stream)

    def wait(self, event: Any) -> None:
        """Return once `event` was reached."""
        self._call("cuEventSynchronize", event)

    def _allow(self, address: Any, size_bytes: int, flags: Any) -> None:
        access = self._driver.CUmemAccessDesc()
        access.location = self._location()
        access.flags = flags
        self._call("cuMemSetAccess", address, size_bytes, [access], 1)

    def _attribute(self, name: str) -> int:
        attribute = getattr(self._driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(self._call("cuDeviceGetAttribute", attribute, self._device))

    def _location(self) -> Any:
        location = self._driver.CUmemLocation()
        location.type = self._driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        location.id = int(self._device)
        return location

    def _call(self, name: str, *arguments: Any) -> Any:
        result, *values = getattr(self._driver, name)(*arguments)
        if int(result) != 0:
            raise CudaError(name, result.name)
        return values[0] if len(values) == 1 else tuple(values)
