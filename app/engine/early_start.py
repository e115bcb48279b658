"""What the engine does while torch is being imported: hear what to bind, start CUDA, map the arena.

Takes the connection, gives what was heard and where the arena lies. Free of torch; runs in a thread, whose
calls into the driver need no GIL. Knows no tensor.
"""

from __future__ import annotations

import os
import threading

from app.messages import BindArena, ToEngine
from streaming.cuda_driver import Cuda
from streaming.wire import Connection


class EarlyStart:
    """One run of it.

    Args:
        connection: To the server; nobody else may read from it until `first_message` has returned.
        device: "cpu" or "cuda".
    """

    def __init__(self, connection: Connection[ToEngine], device: str):
        self._connection = connection
        self._device = device
        self.cuda: Cuda | None = None  # the GPU, once it has started
        self._first: tuple[ToEngine, list[int]] | None = None
        self._addresses: dict[int, int] = {}  # by the descriptor that was mapped there
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="early-start", daemon=True)
        self._thread.start()

    def first_message(self) -> tuple[ToEngine, list[int]]:
        """What the server said first, and its descriptors; the GPU has started by then.

        Raises:
            ConnectionClosed: The server is gone.
            DeviceError: The GPU or the arena cannot be used.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._first is not None  # one or the other
        return self._first

    def arena_address(self, fd: int, nbytes: int) -> int:
        """Where the exported GPU memory `fd` is mapped, read-only where the driver can; `fd` is closed."""
        if fd not in self._addresses:
            assert self.cuda is not None  # only a device arena has an address
            self._addresses[fd] = self.cuda.map(self.cuda.import_exported(fd), nbytes, writable=False)
            os.close(fd)
        return self._addresses[fd]

    def _run(self) -> None:
        try:
            if self._device == "cuda":
                self.cuda = Cuda.find()
                self.cuda.start()
            self._first = message, fds = self._connection.recv()
            if isinstance(message, BindArena) and message.memory.kind == "device":
                self.arena_address(fds[0], message.memory.nbytes)
        except Exception as error:  # noqa: BLE001 - it is raised again where the result is needed
            self._error = error
