"""A matrix product with the weights, as fast for a few rows as for many.

Takes rows of activations, gives rows. Knows nothing of what they mean.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import nn

# Decode steps of a few sequences. MKL's sgemm reads the weights at 3-11 GB/s when the few rows come
# first, and at 15-39 GB/s when the weights do (2 cores of an AMD EPYC, torch 2.13); one row is
# fastest as two. bfloat16 goes through oneDNN, which has no such weakness.
_FEW_ROWS = 4


def product(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """(rows, inputs) times weight (outputs, inputs) transposed, plus bias: (rows, outputs)."""
    count = len(rows)
    if count > _FEW_ROWS or rows.dtype is not torch.float32 or rows.device.type != "cpu":
        return F.linear(rows, weight, bias)
    pair = rows.expand(2, -1).contiguous() if count == 1 else rows
    products = torch.mm(weight, pair.t())[:, :count].t().contiguous()
    return products if bias is None else products.add_(bias)


class Linear(nn.Module):
    """A projection whose parameters start on the meta device.

    Not an `nn.Linear`: that one initialises its weights, which on the meta device imports torch's
    decompositions and sympy with them (1.1 s of cold start).
    """

    def __init__(self, inputs: int, outputs: int, *, bias: bool, dtype: torch.dtype):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, device="meta", dtype=dtype))
        self.bias = nn.Parameter(torch.empty(outputs, device="meta", dtype=dtype)) if bias else None

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """(rows, inputs) -> (rows, outputs)."""
        return product(rows, self.weight, self.bias)


class Embedding(nn.Module):
    """A table of rows, on the meta device at first, for the same reason not an `nn.Embedding`."""

    def __init__(self, entries: int, size: int, *, dtype: torch.dtype):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(entries, size, device="meta", dtype=dtype))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(tokens,) of ids -> (tokens, size)."""
        return F.embedding(ids, self.weight)
