"""The dense feed-forward network. Takes rows of hidden states, gives as many."""

from __future__ import annotations

import torch
from torch import nn

from app.engine.models.linear import Linear
from app.engine.row_ops import RowOps
from app.families.decoder_config import DecoderConfig


class MLP(nn.Module):
    """SiLU-gated feed-forward; gate and up are one matrix."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype):
        super().__init__()
        size = config.intermediate_size
        self.gate_up_proj = Linear(config.hidden_size, 2 * size, bias=config.mlp_bias, dtype=dtype)
        self.down_proj = Linear(size, config.hidden_size, bias=config.mlp_bias, dtype=dtype)

    def forward(self, hidden: torch.Tensor, ops: RowOps) -> torch.Tensor:
        """(tokens, hidden) -> (tokens, hidden)."""
        output: torch.Tensor = self.down_proj(ops.silu_and_mul(self.gate_up_proj(hidden)))
        return output
