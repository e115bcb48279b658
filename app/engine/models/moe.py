"""A feed-forward network of experts: a router, and the few experts that it sends each token to.

Takes rows of hidden states, gives as many. All experts' matrices are views of two long ones of the arena.
How the experts are computed is decided in `_way_of` alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import nn

from app.engine.models.linear import Linear, product
from app.engine.row_ops import RowOps
from app.families.decoder_config import DecoderConfig, ExpertsConfig

# Without grouped products, up to here a GPU's rows go through every expert: that reads all weights once and needs no
# answer from the GPU, which a capture could not give.
_DENSE_ROWS = 256
# torch's grouped products are one kernel from here on; elsewhere they ask the GPU how many rows each group has.
_GROUPED_CAPABILITY = (9, 0)
_GROUPED_ALIGNMENT = 8
# A gathered matrix is read, written and read again: worth it if so few experts are asked for.
_GATHERED_SHARE = 4

_Way = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, RowOps], torch.Tensor]


class Experts(nn.Module):
    """The experts' matrices, one expert's rows after another's."""

    def __init__(self, experts: ExpertsConfig, hidden_size: int, dtype: torch.dtype):
        super().__init__()
        count, inner = experts.num_experts, experts.intermediate_size
        self.gate_up_proj = Linear(hidden_size, count * 2 * inner, bias=False, dtype=dtype)
        self.down_proj = Linear(inner, count * hidden_size, bias=False, dtype=dtype)
        self._shapes = (count, 2 * inner, hidden_size), (count, hidden_size, inner)

    def forward(self, hidden: torch.Tensor, chosen: torch.Tensor, ops: RowOps) -> torch.Tensor:
        """(tokens, hidden) through the experts `chosen` (tokens, visits) -> (tokens, visits, hidden)."""
        gate_up = self.gate_up_proj.weight.view(self._shapes[0])
        return _run_experts(hidden, chosen, gate_up, self.down_proj.weight.view(self._shapes[1]), ops)


class SparseMLP(nn.Module):
    """Every token's `experts_per_token` most likely experts, weighted by how likely they are."""

    def __init__(self, config: DecoderConfig, experts: ExpertsConfig, dtype: torch.dtype):
        super().__init__()
        self.gate = Linear(config.hidden_size, experts.num_experts, bias=False, dtype=dtype)
        self.experts = Experts(experts, config.hidden_size, dtype)
        self._experts_per_token = experts.experts_per_token
        self._normalised = experts.normalised

    def forward(self, hidden: torch.Tensor, ops: RowOps) -> torch.Tensor:
        """(tokens, hidden) -> (tokens, hidden)."""
        likely = self.gate(hidden).softmax(dim=-1, dtype=torch.float32)
        weights, chosen = likely.topk(self._experts_per_token, dim=-1)
        if self._normalised:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        visits = self.experts(hidden, chosen, ops)
        return torch.bmm(weights[:, None], visits.float())[:, 0].to(hidden.dtype)


def max_captured_tokens(
    experts: ExpertsConfig, hidden_size: int, dtype: torch.dtype, device: torch.device
) -> int | None:
    """Steps of how many tokens can be CUDA graphs; None is any."""
    chosen = torch.empty(_DENSE_ROWS + 1, experts.experts_per_token, device="meta")
    hidden = torch.empty(_DENSE_ROWS + 1, hidden_size, dtype=dtype, device="meta")
    way = _way_of(hidden, chosen, experts.num_experts, experts.intermediate_size, device)
    return _DENSE_ROWS if way is _one_by_one else None


def _run_experts(
    hidden: torch.Tensor, chosen: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, ops: RowOps
) -> torch.Tensor:
    """(tokens, hidden), (tokens, visits), (experts, 2 * inner, hidden), (experts, hidden, inner) -> (tokens, visits, hidden)."""
    return _way_of(hidden, chosen, len(gate_up), down.shape[2], hidden.device)(hidden, chosen, gate_up, down, ops)


def _way_of(hidden: torch.Tensor, chosen: torch.Tensor, num_experts: int, inner: int, device: torch.device) -> _Way:
    """Which of the functions below is the best for tensors of these shapes on `device`."""
    aligned = hidden.shape[1] % _GROUPED_ALIGNMENT == 0 and inner % _GROUPED_ALIGNMENT == 0
    if aligned and _has_grouped_products(hidden.dtype, device):
        return _grouped
    if device.type == "cpu" or len(hidden) > _DENSE_ROWS:
        return _one_by_one
    return _gathered if chosen.numel() * _GATHERED_SHARE < num_experts else _all_of_them


def _has_grouped_products(dtype: torch.dtype, device: torch.device) -> bool:
    if device.type != "cuda" or dtype is not torch.bfloat16:
        return False
    return torch.cuda.get_device_capability(device) >= _GROUPED_CAPABILITY


def _grouped(
    hidden: torch.Tensor, chosen: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, ops: RowOps
) -> torch.Tensor:
    """Each expert's own tokens through it, all experts in one product; the host need not know how many they are."""
    visits = chosen.shape[1]
    order = chosen.flatten().argsort()
    rows = hidden[order // visits]
    experts = torch.arange(len(gate_up), device=chosen.device)
    ends = torch.searchsorted(chosen.flatten()[order], experts, right=True, out_int32=True)
    inner = ops.silu_and_mul(F.grouped_mm(rows, gate_up.transpose(1, 2), offs=ends))
    answers = torch.empty_like(rows)
    answers[order] = F.grouped_mm(inner, down.transpose(1, 2), offs=ends)
    return answers.view(-1, visits, hidden.shape[1])


def _one_by_one(
    hidden: torch.Tensor, chosen: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, ops: RowOps
) -> torch.Tensor:
    """Each expert's own tokens through it; the host must know how many they are, so no capture can hold this."""
    visits = chosen.shape[1]
    order = chosen.flatten().argsort()
    rows = hidden[order // visits]
    counts = chosen.flatten().bincount(minlength=len(gate_up)).tolist()
    outputs = [
        product(ops.silu_and_mul(product(its_rows, gate_up[expert])), down[expert])
        for expert, its_rows in enumerate(torch.split(rows, counts))
        if len(its_rows)
    ]
    answers = torch.empty_like(rows)
    answers[order] = torch.cat(outputs)
    return answers.view(-1, visits, hidden.shape[1])


def _gathered(
    hidden: torch.Tensor, chosen: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, ops: RowOps
) -> torch.Tensor:
    """A copy of the matrices of each visit."""
    tokens, visits = chosen.shape
    flat = chosen.flatten()
    rows = hidden.repeat_interleave(visits, dim=0)[:, :, None]
    answers = torch.bmm(down[flat], ops.silu_and_mul(torch.bmm(gate_up[flat], rows)[:, :, 0])[:, :, None])
    return answers.view(tokens, visits, -1)


def _all_of_them(
    hidden: torch.Tensor, chosen: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, ops: RowOps
) -> torch.Tensor:
    """Every token through every expert, and only the chosen answers taken."""
    rows = hidden.expand(len(gate_up), -1, -1)
    answers = torch.bmm(ops.silu_and_mul(torch.bmm(rows, gate_up.transpose(1, 2))), down.transpose(1, 2))
    tokens = torch.arange(len(hidden), device=hidden.device)
    return answers[chosen, tokens[:, None]]
