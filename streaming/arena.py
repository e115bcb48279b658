"""The arena: one flat block of destination memory that outlives the process that fills it.

`HostArena` is a memfd, so the weights are shared memory that the engine maps without a copy. It takes
fetched chunks and puts their segments at their addresses; it knows no source and no thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Protocol

from streaming.cast import cast
from streaming.errors import DeviceError
from streaming.host_memory import check_host_room, host_memory
from streaming.messages import ArenaMemory, Chunk

# A cast makes a copy or three of its piece, so that a piece bounds what a writer holds beside its chunk.
_CAST_BYTES = 1 << 20


class ArenaWriter(Protocol):
    """One thread's way into the arena.

    `write` returns once the chunk's buffer may be reused; `finish` once everything handed in has landed.
    """

    def write(self, chunk: Chunk, data: memoryview) -> None:
        """Put every segment of `data` at its address."""

    def finish(self) -> None:
        """Wait for what is still on its way."""


class Arena(Protocol):
    """Memory that writers fill and whose descriptor other processes map."""

    fd: int
    memory: ArenaMemory

    def open_writer(self, on_landed: Callable[[Chunk], None]) -> ArenaWriter:
        """A writer for the calling thread; `on_landed` is called once a chunk's every byte is at its address."""


def stored_pieces(chunk: Chunk, data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """A fetched chunk as (arena address, bytes to put there), cast where the layout asks for it."""
    for segment in chunk.segments:
        source = data[segment.slot_start : segment.slot_start + segment.slot_nbytes]
        if segment.source_dtype == segment.stored_dtype:
            yield segment.arena_start, source
            continue
        at = segment.arena_start
        for start in range(0, len(source), _CAST_BYTES):
            stored = cast(source[start : start + _CAST_BYTES], segment.source_dtype, segment.stored_dtype)
            yield at, stored
            at += len(stored)


class HostArena:
    """Anonymous shared memory of the host. `fd` keeps it alive, in whichever process holds it."""

    def __init__(self, fd: int, memory: ArenaMemory):
        self.fd = fd
        self.memory = memory

    @classmethod
    def create(cls, nbytes: int, reserve_bytes: int = 0) -> HostArena:
        """A zeroed arena of `nbytes`; memory is taken as it is written.

        Raises:
            DeviceError: The host has less memory than that and `reserve_bytes`.
        """
        check_host_room(nbytes, reserve_bytes, host_memory())
        fd = os.memfd_create("coldstream-arena", os.MFD_CLOEXEC)
        os.ftruncate(fd, nbytes)
        return cls(fd, ArenaMemory("host", nbytes))

    def open_writer(self, on_landed: Callable[[Chunk], None]) -> ArenaWriter:
        """A writer that does it at once: what `write` was given has landed when it returns."""
        return _HostWriter(self.fd, on_landed)


class _HostWriter:
    """`pwrite` needs no mapping, and gives up the GIL (2.8 GB/s; a memoryview copy held it at 1.0)."""

    def __init__(self, fd: int, on_landed: Callable[[Chunk], None]):
        self._fd = fd
        self._on_landed = on_landed

    def write(self, chunk: Chunk, data: memoryview) -> None:
        for arena_start, piece in stored_pieces(chunk, data):
            self._write_piece(piece, arena_start)
        self._on_landed(chunk)

    def finish(self) -> None:
        """Nothing is ever on its way: every write was synchronous."""

    def _write_piece(self, piece: memoryview, at: int) -> None:
        while piece:
            try:
                written = os.pwrite(self._fd, piece, at)
            except OSError as error:
                raise DeviceError(f"the host has no memory left for the weights: {error.strerror}") from error
            piece, at = piece[written:], at + written
