"""The GPU's kernels, compiled in a thread when somebody says so, for nothing before the first answer may wait for them.

Takes the runner that is to use them. Without them it serves all the same, slower: what they need and this machine lacks
is logged. Knows no kernel.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from app.engine.kernel_cache import link_compiled
from app.engine.model_runner import ModelRunner
from app.engine.step_shapes import Limits
from app.engine.torch_import import TorchImport
from streaming.clock import boottime_s

logger = logging.getLogger(__name__)


class KernelStart:
    """One compilation.

    Args:
        runner: On a GPU.
        limits: Of its steps.
        torch_import: Triton needs all of torch.
        compiled_dir: Of kernels that were compiled ahead, if any were.
    """

    def __init__(self, runner: ModelRunner, limits: Limits, torch_import: TorchImport, compiled_dir: str | None):
        self._runner = runner
        self._limits = limits
        self._torch_import = torch_import
        self._compiled_dir = compiled_dir
        self._thread = threading.Thread(target=self._run, name="compile-kernels", daemon=True)

    @property
    def is_over(self) -> bool:
        """Whether the kernels are in use, or never will be."""
        return self._thread.ident is not None and not self._thread.is_alive()

    def begin(self) -> None:
        """Compile beside whatever else runs; another call does nothing."""
        if self._thread.ident is None:
            self._torch_import.go_on()
            self._thread.start()

    def _run(self) -> None:
        start_s = boottime_s()
        try:
            self._torch_import.wait()
            if self._compiled_dir is not None:
                self._use_compiled(Path(self._compiled_dir))
            self._runner.use_kernels(self._limits)
        except Exception as error:  # noqa: BLE001 - whatever Triton, a compiler or the driver raises
            logger.warning("decoding stays slow, without kernels and CUDA graphs: %s: %s", type(error).__name__, error)
        else:
            logger.info("kernels compiled in %.1f s", boottime_s() - start_s)

    @staticmethod
    def _use_compiled(folder: Path) -> None:
        """Without them, the kernels are compiled here."""
        from triton import knobs

        try:
            link_compiled(folder, Path(knobs.cache.dir))
        except OSError as error:
            logger.warning("kernels that were compiled ahead are not used: %s", error)
