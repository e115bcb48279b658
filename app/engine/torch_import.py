"""torch, imported in a thread, and the moment from which its core can be used.

`import torch` runs 700 modules. The last two fifths of that time go to what torch's own source calls the last
to be imported, as nothing is expected to depend on it: quantization, export, registrations for the meta device.
The engine begins before those. Knows nothing of what the engine does; imports torch, but never waits for
another thread with the GIL held.
"""

from __future__ import annotations

import gc
import logging
import sys
import threading
import time
from collections.abc import Callable
from types import ModuleType

logger = logging.getLogger(__name__)

# torch/__init__.py imports this after every subpackage that makes its core.
_FIRST_BEYOND_THE_CORE = "torch.ao"
_POLL_S = 0.005
# Every operation of torch gives up the GIL; with the usual 5 ms until the importing thread hands it back, a
# forward pass of a thousand operations would take seconds.
_SWITCH_S = 0.00001


class TorchImport:
    """One import, which begins at once."""

    def __init__(self) -> None:
        self._error: BaseException | None = None
        self._put_off: list[tuple[Callable[[], None], object]] = []
        self._usual_switch_s = sys.getswitchinterval()
        self._thread = threading.Thread(target=self._run, name="import-torch", daemon=True)
        self._thread.start()

    @property
    def is_whole(self) -> bool:
        """Whether every module of torch is there."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Return once torch is imported.

        Raises:
            ImportError: It cannot be.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error

    def wait_for_core(self, *, on_gpu: bool) -> None:
        """Return once tensors, operations, modules and, if `on_gpu`, CUDA can be used.

        Raises:
            ImportError: torch cannot be imported.
        """
        while self._thread.is_alive() and _FIRST_BEYOND_THE_CORE not in sys.modules:
            time.sleep(_POLL_S)
        if not self._thread.is_alive():
            self.wait()
            return
        sys.setswitchinterval(_SWITCH_S)
        torch = sys.modules["torch"]
        try:
            # Or `import torch` in any other thread would wait until this one has ended.
            torch.__spec__._initializing = False  # type: ignore[union-attr]  # noqa: SLF001
            if on_gpu:
                self._start_cuda(torch)
        except Exception as error:  # noqa: BLE001 - private names of Python and torch: another version may lack them
            logger.warning("torch's core cannot be used before the rest of it: %s", error)
            self.wait()

    def _start_cuda(self, torch: ModuleType) -> None:
        """Start torch's CUDA, but for what its start registers with parts of torch that are not there yet."""
        queued = torch.cuda._queued_calls  # noqa: SLF001
        self._put_off, queued[:] = list(queued), []
        torch.cuda.init()
        if self.is_whole:
            self._make_up()

    def _make_up(self) -> None:
        while self._put_off:
            call, _traceback = self._put_off.pop(0)
            call()

    def _run(self) -> None:
        gc.disable()  # nothing of an import is garbage, and looking for some takes a tenth of it
        try:
            import torch  # noqa: F401

            self._make_up()
        except BaseException as error:  # noqa: BLE001 - it is raised again where torch is needed
            self._error = error
        gc.freeze()
        gc.enable()
        sys.setswitchinterval(self._usual_switch_s)
