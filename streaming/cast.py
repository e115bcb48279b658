"""Casts between floating dtypes in the staging slot, before the copy.

Takes bytes in one dtype, gives bytes in another, bit for bit what torch gives. Knows no tensor and no
address. numpy is imported only when a cast is asked for: most loads need none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

_NUMPY_NAMES = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


def cast(data: memoryview, source_dtype: str, stored_dtype: str) -> memoryview:
    """`data`, whole elements of `source_dtype`, as bytes of `stored_dtype` (safetensors' names)."""
    if source_dtype == stored_dtype:
        return data
    import numpy as np

    if source_dtype == "BF16":
        values: Any = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    else:
        values = np.frombuffer(data, _NUMPY_NAMES[source_dtype])
    with np.errstate(over="ignore"):  # a value beyond float16 becomes inf, as in torch
        stored: Any = _to_bf16(values) if stored_dtype == "BF16" else values.astype(_NUMPY_NAMES[stored_dtype])
    return memoryview(stored).cast("B")


def _to_bf16(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Round to nearest, ties to even; every NaN becomes the quiet NaN 0x7fc0, as in torch."""
    import numpy as np

    single = values.astype("<f4", copy=False)
    bits = single.view("<u4")
    rounded = ((bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16).astype("<u2")
    return np.where(np.isnan(single), np.asarray(0x7FC0, "<u2"), rounded)
