"""The arena in GPU memory, and the writers that copy into it out of pinned slots.

`CudaArena` is one exported allocation: its descriptor keeps the weights in whichever process holds it, also
one that knows no CUDA. Takes fetched chunks and puts their segments at their addresses. Knows no source.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streaming.arena import stored_pieces
from streaming.cuda_driver import Cuda, CudaError
from streaming.host_buffer import HostBuffer
from streaming.messages import ArenaMemory, Chunk


class CudaArena:
    """GPU memory mapped into this process.

    Args:
        cuda: Started; its context is used from every writer.
        fd: Keeps the memory alive.
        memory: How much there is.
        address: Where it is mapped.
        slot_bytes: Size of one staging slot; every writer has two.
        on_unpinned: Called with the reason when a slot cannot be pinned; it may raise.
    """

    def __init__(
        self,
        cuda: Cuda,
        fd: int,
        memory: ArenaMemory,
        address: int,
        *,
        slot_bytes: int,
        on_unpinned: Callable[[str], None],
    ):
        self.fd = fd
        self.memory = memory
        self.address = address
        self._cuda = cuda
        self._slot_bytes = slot_bytes
        self._on_unpinned = on_unpinned

    def open_writer(self, on_landed: Callable[[Chunk], None]) -> CudaWriter:
        """A writer for the calling thread: two slots, one stream."""
        self._cuda.use_here()
        slots = [_Slot(self._cuda, self._slot_bytes) for _ in range(2)]
        try:
            for slot in slots:
                slot.pin()
        except CudaError as error:
            self._on_unpinned(f"{self._slot_bytes} bytes could not be pinned ({error.name}): is `ulimit -l` too low?")
        return CudaWriter(self._cuda, self.address, (slots[0], slots[1]), on_landed)


class _Slot:
    """Staging memory that is either being filled or on its way to the GPU."""

    def __init__(self, cuda: Cuda, nbytes: int):
        self._cuda = cuda
        self._buffer = HostBuffer(nbytes)
        self._event: Any = cuda.new_event()
        self._runs: list[tuple[int, int, int]] = []  # (arena address, slot address, bytes)
        self.used_bytes = 0
        self.chunk: Chunk | None = None  # the one whose last bytes are in it

    @property
    def room_bytes(self) -> int:
        """How much more fits."""
        return self._buffer.nbytes - self.used_bytes

    def pin(self) -> None:
        """Register the memory with the driver."""
        self._cuda.register(self._buffer.address, self._buffer.nbytes)

    def stage(self, address: int, piece: memoryview) -> None:
        """Take a copy of `piece`, bound for `address`."""
        self._buffer.fill(self.used_bytes, piece)
        self._runs.append((address, self._buffer.address + self.used_bytes, piece.nbytes))
        self.used_bytes += piece.nbytes

    def send(self, stream: Any) -> None:
        """Queue the copies of everything staged."""
        for address, slot_address, nbytes in self._runs:
            self._cuda.copy_to_device(address, slot_address, nbytes, stream)
        self._cuda.record(self._event, stream)
        self._runs.clear()

    def drain(self) -> Chunk | None:
        """Wait until everything sent has arrived; the slot is empty then. Gives the chunk that ended in it."""
        if self.used_bytes or self.chunk:
            self._cuda.wait(self._event)
        chunk, self.chunk, self.used_bytes = self.chunk, None, 0
        return chunk


class CudaWriter:
    """One thread's way into the arena: one slot is filled while the other is copied."""

    def __init__(self, cuda: Cuda, address: int, slots: tuple[_Slot, _Slot], on_landed: Callable[[Chunk], None]):
        self._stream = cuda.new_stream()
        self._address = address
        self._slot, self._other = slots
        self._on_landed = on_landed

    def write(self, chunk: Chunk, data: memoryview) -> None:
        """Stage the chunk and queue its copies; `on_landed` hears of it when a slot is needed again."""
        for arena_start, piece in stored_pieces(chunk, data):
            self._stage(self._address + arena_start, piece)
        self._slot.chunk = chunk
        self._flip()

    def finish(self) -> None:
        """Wait for both slots."""
        for slot in (self._other, self._slot):
            self._drain(slot)

    def _stage(self, address: int, piece: memoryview) -> None:
        while piece:
            if not self._slot.room_bytes:
                self._flip()
            part = piece[: self._slot.room_bytes]
            self._slot.stage(address, part)
            piece, address = piece[len(part) :], address + len(part)

    def _flip(self) -> None:
        """Send the full slot; the other one is filled next, once it has arrived."""
        self._slot.send(self._stream)
        self._slot, self._other = self._other, self._slot
        self._drain(self._slot)

    def _drain(self, slot: _Slot) -> None:
        if chunk := slot.drain():
            self._on_landed(chunk)
