"""Root-mean-square norm: its weight. How it is computed is the step's business (`app.engine.row_ops`)."""

from __future__ import annotations

import torch
from torch import nn

from app.engine.row_ops import RowOps


class RMSNorm(nn.Module):
    """Normalises a residual stream, after adding to it what the layer before gave."""

    def __init__(self, size: int, eps: float, dtype: torch.dtype):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, device="meta", dtype=dtype))
        self.eps = eps

    def forward(self, hidden: torch.Tensor, update: torch.Tensor | None, ops: RowOps) -> torch.Tensor:
        """(rows, size), which `update` is added to in place -> (rows, size)."""
        return ops.add_rms_norm(hidden, update, self.weight, self.eps)
