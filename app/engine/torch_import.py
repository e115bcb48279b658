"""torch, imported in a thread, and the moment from which its core can be used.

`import torch` runs 700 modules. The last two fifths of that time go to what torch's own source calls the last
to be imported, as nothing is expected to depend on it: quantization, export, registrations for the meta device.
The engine begins before those. Knows nothing of what the engine does; imports torch, but never waits for
another thread with the GIL held.
"""

from __future__ import annotations

import gc
import sys
import threading
import time

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

    def wait_for_core(self) -> None:
        """Return once tensors, operations, modules and CUDA can be used.

        Raises:
            ImportError: torch cannot be imported.
        """
        while self._thread.is_alive() and _FIRST_BEYOND_THE_CORE not in sys.modules:
            time.sleep(_POLL_S)
        if not self._thread.is_alive():
            self.wait()
            return
        sys.setswitchinterval(_SWITCH_S)
        # Or `import torch` in any other thread would wait until this one has ended.
        sys.modules["torch"].__spec__._initializing = False  # type: ignore[union-attr]  # noqa: SLF001

    def _run(self) -> None:
        gc.disable()  # nothing of an import is garbage, and looking for some takes a tenth of it
        try:
            import torch  # noqa: F401
        except BaseException as error:  # noqa: BLE001 - it is raised again where torch is needed
            self._error = error
        gc.freeze()
        gc.enable()
        sys.setswitchinterval(self._usual_switch_s)
