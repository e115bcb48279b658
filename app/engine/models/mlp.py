"""The dense feed-forward network. Takes rows of hidden states, gives as many."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import nn

from app.engine.models.linear import Linear
from app.families.decoder_config import DecoderConfig


def gated(gate_up: torch.Tensor) -> torch.Tensor:
    """SiLU of the first half of the channels times the second: (..., 2 * inner) -> (..., inner)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


class MLP(nn.Module):
    """SiLU-gated feed-forward; gate and up are one matrix."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype):
        super().__init__()
        size = config.intermediate_size
        self.gate_up_proj = Linear(config.hidden_size, 2 * size, bias=config.mlp_bias, dtype=dtype)
        self.down_proj = Linear(size, config.hidden_size, bias=config.mlp_bias, dtype=dtype)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(tokens, hidden) -> (tokens, hidden)."""
        output: torch.Tensor = self.down_proj(gated(self.gate_up_proj(hidden)))
        return output
