"""Small tensors between host and device, and rows of a batch.

The host never waits for an upload; it waits once per step, in `fetch`. Knows nothing of sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def upload(values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """`values` as a tensor on `device`; does not wait for the device."""
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


def column(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """One value per row, (rows, 1)."""
    return upload(values, dtype, device)[:, None]


def fetch(tensors: Sequence[torch.Tensor]) -> list[list[Any]]:
    """Every tensor's values as lists, in one transfer: the one place where the host waits for the device.

    Several tensors travel as float64, which holds token ids and float32 exactly: their integers come as floats.
    """
    if len(tensors) == 1:
        return [tensors[0].tolist()]
    flat = torch.cat([tensor.double().flatten() for tensor in tensors]).cpu()
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape).tolist() for part, tensor in zip(parts, tensors, strict=True)]


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
