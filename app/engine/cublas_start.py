"""cuBLAS started, and the kernels of the model's matrix products loaded, before torch could ask for either.

Takes the shapes of the arena's matrices, runs each product once on memory of its own. Both the library's start
and a kernel's first use are paid once per process, so torch finds them done. Free of torch; knows no weight.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any

from streaming.cuda_driver import Cuda

_SONAMES = ("libcublas.so.13", "libcublas.so.12")
# cuBLAS's numbers: an operand transposed or not, bfloat16, float32 accumulation, whatever algorithm it prefers.
_TRANSPOSED, _AS_IT_IS = 1, 0
_BF16, _F16, _F32, _COMPUTE_F32, _DEFAULT_ALGORITHM = 14, 2, 0, 68, -1
_TYPES = {"BF16": _BF16, "F16": _F16}
# A prefill of the warm-up's length, and a decode step.
_ROWS = (16, 1)


def start_cublas(cuda: Cuda, dtype: str, shapes: Iterable[tuple[int, int]]) -> bool:
    """Run rows x weight^T for each weight shape (outputs, inputs), in safetensors' `dtype`.

    Returns whether it did: torch manages without, only later.
    """
    library = _loaded()
    if library is None or dtype not in _TYPES:
        return False
    handle = ctypes.c_void_p()
    if library.cublasCreate_v2(ctypes.byref(handle)) != 0:
        return False
    weights = sorted(set(shapes))
    scratch = cuda.allocate(2 * max(_elements(outputs, inputs) for outputs, inputs in weights))
    for outputs, inputs in weights:
        for rows in _ROWS:
            _multiply(library, handle, scratch, _TYPES[dtype], (rows, outputs, inputs))
    cuda.synchronize()
    cuda.free(scratch)
    return True


def _elements(outputs: int, inputs: int) -> int:
    return outputs * inputs + max(_ROWS) * (inputs + outputs)


def _multiply(library: Any, handle: Any, scratch: int, kind: int, sizes: tuple[int, int, int]) -> None:
    """As torch asks for it: cuBLAS is column-major, so that the result is outputs x rows."""
    rows, outputs, inputs = sizes
    weight = scratch
    hidden = weight + 2 * outputs * inputs
    result = hidden + 2 * max(_ROWS) * inputs
    one, zero = ctypes.c_float(1.0), ctypes.c_float(0.0)
    library.cublasGemmEx(
        handle, _TRANSPOSED, _AS_IT_IS, outputs, rows, inputs,
        ctypes.byref(one), ctypes.c_void_p(weight), kind, inputs, ctypes.c_void_p(hidden), kind, inputs,
        ctypes.byref(zero), ctypes.c_void_p(result), kind, outputs, _COMPUTE_F32, _DEFAULT_ALGORITHM,
    )  # fmt: skip


def _loaded() -> Any:
    """The cuBLAS that torch's libraries have brought along."""
    for name in _SONAMES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None
