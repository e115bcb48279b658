"""Root-mean-square norm. Takes rows of any width, gives them normalised."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import nn


class RMSNorm(nn.Module):
    """Normalises the last dimension in float32 and casts before the weight, as the reference does."""

    def __init__(self, size: int, eps: float, dtype: torch.dtype):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, device="meta", dtype=dtype))
        self._shape = (size,)
        self._eps = eps

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """(..., size) -> (..., size)."""
        normed = F.rms_norm(rows.float(), self._shape, None, self._eps)
        return self.weight * normed.to(rows.dtype)
