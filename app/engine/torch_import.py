"""torch, imported in a thread that stops where torch's core is complete, until somebody has time for the rest.

`import torch` runs 700 modules. The last third of its time goes to what torch's own source calls the last to be
imported, as nothing is expected to depend on it: quantization, export, registrations for the meta device. The
engine begins before those. Knows nothing of what the engine does.
"""

from __future__ import annotations

import gc
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

logger = logging.getLogger(__name__)

# torch/__init__.py imports this after every subpackage that makes its core.
_FIRST_BEYOND_THE_CORE = "torch.ao"
_POLL_S = 0.05
# Every operation of torch gives up the GIL. Beside an importing thread, which hands it back after 5 ms by
# itself, a forward pass of a thousand operations would take seconds.
_SWITCH_S = 0.00001


class TorchImport:
    """One import, which begins at once.

    Args:
        stops_at_core: Else it runs through.
    """

    def __init__(self, *, stops_at_core: bool) -> None:
        self._error: BaseException | None = None
        self._put_off: list[tuple[Callable[[], None], object]] = []
        self._usual_switch_s = sys.getswitchinterval()
        self._stop = _Stop()
        if stops_at_core:
            sys.meta_path.insert(0, self._stop)
        self._thread = threading.Thread(target=self._run, name="import-torch", daemon=True)
        self._thread.start()

    @property
    def is_whole(self) -> bool:
        """Whether every module of torch is there."""
        return not self._thread.is_alive()

    def go_on(self) -> None:
        """Import the rest beside whatever else runs."""
        if self._thread.is_alive():
            sys.setswitchinterval(_SWITCH_S)
        self._stop.go_on.set()

    def wait(self) -> None:
        """Return once all of torch is imported.

        Raises:
            ImportError: It cannot be.
        """
        self._stop.go_on.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def wait_for_core(self, *, on_gpu: bool) -> None:
        """Return once tensors, operations, modules and, if `on_gpu`, CUDA can be used.

        Raises:
            ImportError: torch cannot be imported.
        """
        while not self._stop.reached.wait(_POLL_S) and self._thread.is_alive():
            pass
        if not self._stop.reached.is_set():
            self.wait()
            return
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

    def _run(self) -> None:
        gc.disable()  # nothing of an import is garbage, and looking for some takes a tenth of it
        try:
            import torch  # noqa: F401

            for call, _traceback in self._put_off:
                call()
        except BaseException as error:  # noqa: BLE001 - it is raised again where torch is needed
            self._error = error
        gc.freeze()
        gc.enable()
        sys.setswitchinterval(self._usual_switch_s)


class _Stop(MetaPathFinder, Loader):
    """Runs the first module beyond the core, but only after `go_on`.

    The loader waits, not the finder: importlib looks for modules with a lock that every import needs.
    """

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go_on = threading.Event()
        self._real: Any = None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _FIRST_BEYOND_THE_CORE:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None:
            self._real, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._real.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self.reached.set()
        self.go_on.wait()
        self._real.exec_module(module)
