"""Compiles a model's kernels where there is no GPU: `python -m app.engine.kernels_ahead --into DIR --capabilities N CONFIG...`.

The model is built on meta from its config.json, and takes one step of either kind through the launches that a GPU's would
take, with a driver of Triton that compiles and launches nothing. So what is compiled is what an engine looks for, by
construction: shapes, types, alignments and options are not written down a second time. It is what `--kernels-dir` takes.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from app.messages import EngineOptions
from app.model_support import accepted_family, read_config, stored_dtype
from streaming.errors import ModelUnsupported

if TYPE_CHECKING:
    from triton.backends.compiler import GPUTarget

_WARP_SIZE = 32
# No kernel depends on it.
_MAX_MODEL_LEN_TOKENS = 4096


class CompilingDriver:
    """What Triton asks a driver, answered for a GPU that is not there.

    The device's number is its compute capability: what Triton keeps in memory for one device is not taken for another's.

    Args:
        capability: 80 is an A100, 90 an H100.
    """

    def __init__(self, capability: int):
        self._capability = capability
        self.utils = SimpleNamespace(
            get_device_properties=lambda _device: {"max_shared_mem": sys.maxsize},
            load_binary=lambda *_binary: (None, None, 0, 0, sys.maxsize),
        )

    def get_current_device(self) -> int:
        """Its number."""
        return self._capability

    def get_current_stream(self, _device: int) -> int:
        """Where nothing will be launched."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """What to compile for."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self._capability, _WARP_SIZE)

    def launcher_cls(self, _source: Any, _metadata: Any) -> Callable[..., None]:
        """A launch that does nothing."""
        return lambda *_arguments: None


def compile_kernels(config_json: bytes, capability: int) -> None:
    """Compile what an engine with the usual options needs for this model, into Triton's cache.

    Args:
        config_json: Of a model that our own decoder computes, in the dtype that it names (bfloat16, if none).
        capability: As `CompilingDriver` takes it.

    Raises:
        ModelUnsupported: Another one does, or none.
    """
    import torch
    from triton.runtime.driver import driver

    from app.engine.gpu_steps import GPUSteps
    from app.engine.kv_cache import KVCache
    from app.engine.last_draw import LastDraw
    from app.engine.models.decoder import Decoder
    from app.engine.skeleton import TORCH_DTYPES
    from app.engine.step_shapes import Limits

    config = read_config({"config.json": config_json})
    decoder = accepted_family(config).decoder(config)
    # Of equal layers, one; a sliding window or experts make others.
    decoder = dataclasses.replace(decoder, layers=tuple(dict.fromkeys(decoder.layers)))
    dtype = TORCH_DTYPES[stored_dtype(config, "BF16", "auto")]
    meta, options = torch.device("meta"), EngineOptions()
    driver.set_active(CompilingDriver(capability))
    with torch.inference_mode():
        model = Decoder(decoder, dtype, meta, _MAX_MODEL_LEN_TOKENS)
        cache = KVCache(decoder, dtype, meta, 1, options.block_size_tokens)
        limits = Limits(options.max_num_batched_tokens, options.max_num_seqs, _MAX_MODEL_LEN_TOKENS)
        GPUSteps(model, cache, LastDraw(options.max_num_seqs, meta), limits).compile()


def compile_driver_module() -> None:
    """Compile the module by which Triton calls CUDA's driver, for which each machine would need a C compiler.

    None of the driver's functions is called: an empty library of its name will do.

    Raises:
        Exception: What Triton raises without a C compiler, Python's headers or `libcuda.so.1`.
    """
    from triton.backends.nvidia.driver import CudaUtils

    sys.setdlopenflags(os.RTLD_LAZY)
    CudaUtils()


def main(words: Sequence[str] | None = None) -> int:
    """Compile for every model and capability; the exit code."""
    given = _parsed(words)
    from triton import knobs

    # Triton notes a kernel's path, so the folder stays where it was made.
    knobs.cache.dir = str(Path(given.into).absolute())
    knobs.compilation.store_binary_only = True  # what is loaded, without what it was made of
    for path in given.configs:
        for capability in given.capabilities:
            try:
                compile_kernels(Path(path).read_bytes(), capability)
            except (OSError, ModelUnsupported) as error:
                print(f"kernels_ahead: {path}: {error}", file=sys.stderr)
                return 1
    if given.driver_module:
        compile_driver_module()
    print(f"{sum(1 for _ in Path(given.into).glob('*/*.cubin'))} kernels in {given.into}")
    return 0


def _parsed(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m app.engine.kernels_ahead", description="Compile kernels without a GPU.")
    parser.add_argument("--into", required=True, metavar="DIR", help="what is there already is not compiled again")
    parser.add_argument(
        "--capabilities",
        type=_numbers,
        required=True,
        metavar="N[,N...]",
        help="of the GPUs: 80 is an A100, 90 an H100",
    )
    parser.add_argument("--driver-module", action="store_true", help="and what an engine would need a C compiler for")
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="a model's config.json")
    return parser.parse_args(words)


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
