"""What is computed between two matrix products, with torch's own operations: norms, rotation, the feed-forward's gate.

`RowOps` is what a decoder needs of such a module; `app.engine.kernels.rows` is one for GPUs. Takes and gives rows of
activations. Knows no module and no sequence.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)

HeadNorms = tuple[torch.Tensor, torch.Tensor]


class RowOps(Protocol):
    """The functions of this module."""

    def add_rms_norm(
        self, hidden: torch.Tensor, update: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """See `add_rms_norm`."""

    def rotate_and_store(
        self,
        qkv: torch.Tensor,
        cos: torch.Tensor,
        signed_sin: torch.Tensor,
        slots: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        norms: HeadNorms | None,
        eps: float,
    ) -> torch.Tensor:
        """See `rotate_and_store`."""

    def silu_and_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """See `silu_and_mul`."""


def add_rms_norm(hidden: torch.Tensor, update: torch.Tensor | None, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Add `update` to `hidden` in place, then give its root-mean-square norm: (rows, hidden) -> (rows, hidden)."""
    if update is not None:
        hidden.add_(update)
    return rms_norm(hidden, weight, eps)


def rms_norm(rows: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """(..., size) -> (..., size), in float32 and cast before the weight, as the reference does."""
    normed = F.rms_norm(rows.float(), weight.shape, None, eps)
    return weight * normed.to(rows.dtype)


def rotate_and_store(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    signed_sin: torch.Tensor,
    slots: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    norms: HeadNorms | None,
    eps: float,
) -> torch.Tensor:
    """Normalise heads, rotate queries and keys, put keys and values into the cache.

    Args:
        qkv: (rows, heads + 2 * kv_heads, head_dim), queries first.
        cos: (rows, 1, rotated), as `RotaryEmbedding.tables` makes it.
        signed_sin: As cos.
        slots: (rows,) int64, where each row's key and value go.
        keys: (slots, kv_heads, head_dim).
        values: As keys.
        norms: Weights (head_dim,) of the query heads' norm and of the key heads', where there are such.
        eps: Of those norms.

    Returns:
        Rotated queries (rows, heads, head_dim).
    """
    kv_heads = keys.shape[1]
    heads = qkv.shape[1] - 2 * kv_heads
    # Queries and keys lie side by side, so one rotation serves both.
    to_rotate = qkv[:, : heads + kv_heads]
    if norms is not None:
        normed = (rms_norm(to_rotate[:, :heads], norms[0], eps), rms_norm(to_rotate[:, heads:], norms[1], eps))
        to_rotate = torch.cat(normed, dim=1)
    rotated = rotate(to_rotate, cos, signed_sin)
    keys.index_copy_(0, slots, rotated[:, heads:])
    values.index_copy_(0, slots, qkv[:, heads + kv_heads :])
    return rotated[:, :heads]


def rotate(heads: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor) -> torch.Tensor:
    """Rotate (tokens, heads, head_dim) by the tables of `RotaryEmbedding.tables`; gives a new tensor.

    Channels beyond the tables' stay as they are.
    """
    rotary_dim = cos.shape[-1]
    if rotary_dim < heads.shape[-1]:
        return torch.cat((rotate(heads[..., :rotary_dim], cos, signed_sin), heads[..., rotary_dim:]), dim=-1)
    first, second = heads.chunk(2, dim=-1)
    swapped = torch.cat((second, first), dim=-1)
    return (heads * cos).add_(swapped.mul_(signed_sin))


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """SiLU of the first half of the channels times the second: (..., 2 * inner) -> (..., inner)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)
