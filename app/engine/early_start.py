"""What the engine does while torch is being imported: start CUDA and cuBLAS, hear what to bind, map the arena.

Takes the connection, gives what was heard and where the arena lies. Free of torch; runs in a thread, whose
calls into the driver need no GIL. Knows no tensor.
"""

from __future__ import annotations

import os
import sys
import threading
import time

from app.engine.cublas_start import start_cublas
from app.messages import BindArena, StartEngine, ToEngine
from app.telemetry.logs import configure
from streaming.cuda_driver import Cuda
from streaming.process import show_devices
from streaming.wire import Connection

_LIBRARIES_POLL_S = 0.02


class EarlyStart:
    """One run of it.

    Args:
        connection: To the server; nobody else may read from it until `first_message` has returned.
    """

    def __init__(self, connection: Connection[ToEngine]):
        self._connection = connection
        self.cuda: Cuda | None = None  # the GPU, once it has started
        self._first: tuple[ToEngine, list[int]] | None = None
        self._addresses: dict[int, int] = {}  # by the descriptor that was mapped there
        self._error: Exception | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="early-start", daemon=True)
        self._thread.start()

    def is_on_gpu(self) -> bool:
        """Whether a GPU has been started, which it is waited for."""
        self._started.wait()
        return self.cuda is not None

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
            start, _ = self._connection.recv()
            assert isinstance(start, StartEngine)  # the server says this first
            configure(start.log_level, start.log_format)
            if start.device == "cuda":
                show_devices(start.visible_devices)
                cuda = Cuda.find()
                cuda.start()
                self.cuda = cuda
            self._started.set()
            self._first = message, fds = self._connection.recv()
            if self.cuda is not None and isinstance(message, BindArena):
                if message.memory.kind == "device":
                    self.arena_address(fds[0], message.memory.nbytes)
                _start_cublas(self.cuda, message)
        except Exception as error:  # noqa: BLE001 - it is raised again where the result is needed
            self._error = error
            self._started.set()


def _start_cublas(cuda: Cuda, request: BindArena) -> None:
    """Load the kernels of the model's matrix products as soon as torch has brought its cuBLAS along.

    Not sooner: two threads that load libraries wait for one another, and one of them with the GIL.
    """
    while "torch._C" not in sys.modules:
        time.sleep(_LIBRARIES_POLL_S)
    matrices = [extent for extent in request.extents.values() if len(extent.shape) == 2]
    start_cublas(cuda, matrices[0].dtype, {(extent.shape[0], extent.shape[1]) for extent in matrices})
