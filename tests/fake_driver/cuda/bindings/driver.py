"""A CUDA driver whose GPU is host memory: the calls that Coldstream makes, and any failure of them.

FAKE_CUDA is JSON: `fail` maps a call to the name of its error, `attributes` and `free_bytes` describe the GPU.
Device memory is a memfd, so that its exported descriptor can be read by the test. Everything else about a
driver is tested on a real one (tests/gpu).
"""

from __future__ import annotations

import ctypes
import enum
import json
import mmap
import os
from typing import Any

_OPTIONS: dict[str, Any] = {"fail": {}, "attributes": {}, "free_bytes": 1 << 34} | json.loads(
    os.environ.get("FAKE_CUDA", "{}")
)
_ATTRIBUTES = {
    "COMPUTE_MODE": 0,
    "COMPUTE_CAPABILITY_MAJOR": 9,
    "COMPUTE_CAPABILITY_MINOR": 0,
    "VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED": 1,
    "HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED": 1,
} | _OPTIONS["attributes"]
_GRANULARITY_BYTES = 2 << 20
_reserved: list[mmap.mmap] = []
_libc = ctypes.CDLL(None)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)

CUresult = enum.IntEnum("CUresult", ["CUDA_SUCCESS", *sorted(set(_OPTIONS["fail"].values()))], start=0)
CUdevice_attribute = enum.Enum("CUdevice_attribute", {f"CU_DEVICE_ATTRIBUTE_{name}": name for name in _ATTRIBUTES})
CUmemAllocationHandleType = enum.Enum("CUmemAllocationHandleType", ["CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR"])
CUmemAllocationType = enum.Enum("CUmemAllocationType", ["CU_MEM_ALLOCATION_TYPE_PINNED"])
CUmemLocationType = enum.Enum("CUmemLocationType", ["CU_MEM_LOCATION_TYPE_DEVICE"])
CUmemAllocationGranularity_flags = enum.Enum("Granularity", ["CU_MEM_ALLOC_GRANULARITY_RECOMMENDED"])
CUmemAccess_flags = enum.Enum("Access", ["CU_MEM_ACCESS_FLAGS_PROT_READ", "CU_MEM_ACCESS_FLAGS_PROT_READWRITE"])


class _Struct:
    """A C struct of any fields."""


CUmemLocation = CUmemAllocationProp = CUmemAccessDesc = _Struct


def _called(name: str, *values: Any) -> tuple[Any, ...]:
    if error := _OPTIONS["fail"].get(name):
        return CUresult[error], *(None for _ in values)
    return CUresult.CUDA_SUCCESS, *values


def cuInit(flags):
    return _called("cuInit")


def cuDriverGetVersion():
    return _called("cuDriverGetVersion", _OPTIONS.get("cuda_version", 12080))


def cuDeviceGetCount():
    return _called("cuDeviceGetCount", _OPTIONS.get("gpus", 1))


def cuDeviceGet(ordinal):
    return _called("cuDeviceGet", 7)


def cuDeviceGetName(length, device):
    return _called("cuDeviceGetName", b"Fake H100\0\0")


def cuDeviceGetAttribute(attribute, device):
    return _called("cuDeviceGetAttribute", _ATTRIBUTES[attribute.value])


def cuDevicePrimaryCtxRetain(device):
    return _called("cuDevicePrimaryCtxRetain", "context")


def cuCtxSetCurrent(context):
    assert context == "context"
    return _called("cuCtxSetCurrent")


def cuMemGetInfo():
    return _called("cuMemGetInfo", _OPTIONS["free_bytes"], 1 << 35)


def cuMemGetAllocationGranularity(properties, option):
    return _called("cuMemGetAllocationGranularity", _GRANULARITY_BYTES)


def cuMemCreate(size, properties, flags):
    assert size % _GRANULARITY_BYTES == 0
    assert properties.location.id == 7
    answer = _called("cuMemCreate", os.memfd_create("fake-gpu"))
    if answer[0] == 0:
        os.ftruncate(answer[1], size)
    return answer


def cuMemExportToShareableHandle(handle, kind, flags):
    return _called("cuMemExportToShareableHandle", os.dup(handle))


def cuMemImportFromShareableHandle(fd, kind):
    return _called("cuMemImportFromShareableHandle", os.dup(fd))


def cuMemAddressReserve(size, alignment, address, flags):
    reserved = mmap.mmap(-1, size)
    _reserved.append(reserved)
    return _called("cuMemAddressReserve", ctypes.addressof(ctypes.c_char.from_buffer(reserved)))


def cuMemMap(address, size, offset, handle, flags):
    assert os.fstat(handle).st_size == size
    protection, fixed = mmap.PROT_READ | mmap.PROT_WRITE, 0x10
    assert _libc.mmap(address, size, protection, mmap.MAP_SHARED | fixed, handle, 0) == address
    return _called("cuMemMap")


def cuMemSetAccess(address, size, access, count):
    return _called("cuMemSetAccess")


def cuMemHostRegister(address, nbytes, flags):
    return _called("cuMemHostRegister")


class _Stream:
    """Copies in the order in which they were queued; `done` of them have been made."""

    def __init__(self):
        self.queue: list[tuple[int, int, int]] = []
        self.done = 0


def cuStreamCreate(flags):
    return _called("cuStreamCreate", _Stream())


def cuEventCreate(flags):
    return _called("cuEventCreate", [])


def cuMemcpyHtoDAsync(address, host_address, nbytes, stream):
    """Nothing arrives before somebody waits: whoever reuses a slot too early is found out."""
    stream.queue.append((address, host_address, nbytes))
    return _called("cuMemcpyHtoDAsync")


def cuEventRecord(event, stream):
    event[:] = [stream, len(stream.queue)]
    return _called("cuEventRecord")


def cuEventSynchronize(event):
    stream, count = event
    for address, host_address, nbytes in stream.queue[stream.done : count]:
        ctypes.memmove(address, host_address, nbytes)
    stream.done = max(stream.done, count)
    return _called("cuEventSynchronize")
