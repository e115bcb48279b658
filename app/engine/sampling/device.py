"""Small tensors between host and device, and rows of a batch.

The host never waits for an upload; it waits once per step, in `Readback.values`. Knows nothing of sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def upload(values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """`values` as a tensor on `device`; does not wait for the device."""
    return to_device(torch.tensor(values, dtype=dtype), device)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on `device`; does not wait for the device."""
    # From pageable memory a copy may wait for all that was queued before it.
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def column(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """One value per row, (rows, 1)."""
    return upload(values, dtype, device)[:, None]


class Readback:
    """Tensors on their way to the host, in one transfer that is queued behind what computes them.

    Several travel as float64, which holds token ids and float32 exactly: their integers come as floats.

    Args:
        tensors: On one device; at least one.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]):
        self._shapes = [tensor.shape for tensor in tensors]
        flat = tensors[0] if len(tensors) == 1 else torch.cat([tensor.double().flatten() for tensor in tensors])
        self._host = flat
        self._arrived: torch.cuda.Event | None = None
        if flat.is_cuda:
            self._host = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
            self._host.copy_(flat, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def values(self) -> list[list[Any]]:
        """Every tensor's values as lists: the one place where the host waits for the device."""
        if self._arrived is not None:
            self._arrived.synchronize()
        parts = torch.split(self._host.flatten(), [shape.numel() for shape in self._shapes])
        return [part.view(shape).tolist() for part, shape in zip(parts, self._shapes, strict=True)]


class Rows:
    """Some rows of a batch; where they are all of them, picking costs no copy.

    Args:
        numbers: Which ones, ascending.
        batch_rows: How many the batch has.
        device: Where the batch is.
    """

    def __init__(self, numbers: Sequence[int], batch_rows: int, device: torch.device):
        self.numbers = tuple(numbers)
        self._index = None if len(numbers) == batch_rows else upload(numbers, torch.long, device)

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """These rows of (batch rows, ...): a copy, or `tensor` itself."""
        return tensor if self._index is None else tensor.index_select(0, self._index)

    def put(self, tensor: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """`tensor` with these rows replaced, in place unless they are all of them."""
        return rows if self._index is None else tensor.index_copy_(0, self._index, rows)
