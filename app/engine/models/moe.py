"""A feed-forward network of experts: a router, and the few experts that it sends each token to.

Takes rows of hidden states, gives as many. All experts' matrices are views of two long ones of the arena.
How the experts are computed is decided in `_run_experts` alone.
"""

from __future__ import annotations

import torch
from torch import nn

from app.engine.models.linear import Linear, product
from app.engine.models.mlp import gated
from app.families.decoder_config import DecoderConfig, ExpertsConfig

# Up to here a GPU's rows go through every expert: that reads all weights once and needs no answer from the GPU.
_DENSE_ROWS = 256
# A gathered matrix is read, written and read again: worth it if so few experts are asked for.
_GATHERED_SHARE = 4


class Experts(nn.Module):
    """The experts' matrices, one expert's rows after another's."""

    def __init__(self, experts: ExpertsConfig, hidden_size: int, dtype: torch.dtype):
        super().__init__()
        count, inner = experts.num_experts, experts.intermediate_size
        self.gate_up_proj = Linear(hidden_size, count * 2 * inner, bias=False, dtype=dtype)
        self.down_proj = Linear(inner, count * hidden_size, bias=False, dtype=dtype)
        self._shapes = (count, 2 * inner, hidden_size), (count, hidden_size, inner)

    def forward(self, hidden: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """(tokens, hidden) through the experts `chosen` (tokens, visits) -> (tokens, visits, hidden)."""
        gate_up = self.gate_up_proj.weight.view(self._shapes[0])
        return _run_experts(hidden, chosen, gate_up, self.down_proj.weight.view(self._shapes[1]))


class SparseMLP(nn.Module):
    """Every token's `experts_per_token` most likely experts, weighted by how likely they are."""

    def __init__(self, config: DecoderConfig, experts: ExpertsConfig, dtype: torch.dtype):
        super().__init__()
        self.gate = Linear(config.hidden_size, experts.num_experts, bias=False, dtype=dtype)
        self.experts = Experts(experts, config.hidden_size, dtype)
        self._experts_per_token = experts.experts_per_token
        self._normalised = experts.normalised

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(tokens, hidden) -> (tokens, hidden)."""
        likely = self.gate(hidden).softmax(dim=-1, dtype=torch.float32)
        weights, chosen = likely.topk(self._experts_per_token, dim=-1)
        if self._normalised:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        visits = self.experts(hidden, chosen)
        return torch.bmm(weights[:, None], visits.float())[:, 0].to(hidden.dtype)


def _run_experts(hidden: torch.Tensor, chosen: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """(tokens, hidden), (tokens, visits), (experts, 2 * inner, hidden), (experts, hidden, inner) -> (tokens, visits, hidden)."""
    on_cpu = hidden.device.type == "cpu"
    # A capture can ask the GPU nothing.
    if on_cpu or (len(hidden) > _DENSE_ROWS and not torch.cuda.is_current_stream_capturing()):
        return _one_by_one(hidden, chosen, gate_up, down)
    if chosen.numel() * _GATHERED_SHARE < len(gate_up):
        return _gathered(hidden, chosen, gate_up, down)
    return _all_of_them(hidden, chosen, gate_up, down)


def _one_by_one(hidden: torch.Tensor, chosen: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """Each expert's own tokens through it; the host must know how many they are."""
    visits = chosen.shape[1]
    order = chosen.flatten().argsort()
    rows = hidden[order // visits]
    counts = chosen.flatten().bincount(minlength=len(gate_up)).tolist()
    outputs = [
        product(gated(product(its_rows, gate_up[expert])), down[expert])
        for expert, its_rows in enumerate(torch.split(rows, counts))
        if len(its_rows)
    ]
    answers = torch.empty_like(rows)
    answers[order] = torch.cat(outputs)
    return answers.view(-1, visits, hidden.shape[1])


def _gathered(hidden: torch.Tensor, chosen: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """A copy of the matrices of each visit."""
    tokens, visits = chosen.shape
    flat = chosen.flatten()
    rows = hidden.repeat_interleave(visits, dim=0)[:, :, None]
    answers = torch.bmm(down[flat], gated(torch.bmm(gate_up[flat], rows)[:, :, 0])[:, :, None])
    return answers.view(tokens, visits, -1)


def _all_of_them(hidden: torch.Tensor, chosen: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """Every token through every expert, and only the chosen answers taken."""
    rows = hidden.expand(len(gate_up), -1, -1)
    answers = torch.bmm(gated(torch.bmm(rows, gate_up.transpose(1, 2))), down.transpose(1, 2))
    tokens = torch.arange(len(hidden), device=hidden.device)
    return answers[chosen, tokens[:, None]]
