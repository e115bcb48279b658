"""The ceiling of the bus: `python -m bench.gpu.landing_h2d KIND CHUNK_BYTES TOTAL_BYTES`, KIND pinned or pageable.

Copies from two host slots, as a lane has them, into memory of the kind that the arena is of; nothing fills the
slots meanwhile.
"""

from __future__ import annotations

import sys
from typing import Any

from bench.gpu.landing_curve import tell
from streaming.clock import boottime_s, exec_time_s
from streaming.cuda_driver import Cuda
from streaming.host_buffer import HostBuffer

_KINDS = ("pinned", "pageable")
_DEVICE_CHUNKS = 16


def measure(kind: str, chunk_bytes: int, total_bytes: int) -> dict[str, Any]:
    """GB/s of copies of `chunk_bytes` each, `total_bytes` or a little more in all."""
    cuda = Cuda.find()
    cuda.start()
    handle, _, size_bytes = cuda.create_exportable(chunk_bytes * _DEVICE_CHUNKS)
    address = cuda.map(handle, size_bytes, writable=True)
    slots = [(HostBuffer(chunk_bytes), cuda.new_event()) for _ in range(2)]
    if kind == "pinned":
        for slot, _ in slots:
            cuda.register(slot.address, slot.nbytes)
    stream = cuda.new_stream()

    def copy(number: int) -> None:
        slot, event = slots[number % 2]
        if number >= len(slots):
            cuda.wait(event)
        cuda.copy_to_device(address + number % _DEVICE_CHUNKS * chunk_bytes, slot.address, chunk_bytes, stream)
        cuda.record(event, stream)

    copies = max(2, -(-total_bytes // chunk_bytes))
    start_s = boottime_s()
    for number in range(copies):
        copy(number)
    for _, event in slots:
        cuda.wait(event)
    end_s = boottime_s()
    return {
        "seconds": round(end_s - exec_time_s(), 4),
        "planned_s": round(start_s - exec_time_s(), 4),
        "bytes": copies * chunk_bytes,
        "transfer": round(copies * chunk_bytes / (end_s - start_s) / 1e9, 4),
    }


if __name__ == "__main__":
    kind, chunk_bytes, total_bytes = sys.argv[1:]
    if kind not in _KINDS:
        sys.exit(f"{kind}: use one of {', '.join(_KINDS)}")
    tell(measure(kind, int(chunk_bytes), int(total_bytes)))
