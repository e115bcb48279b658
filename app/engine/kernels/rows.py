"""Rows of activations between two matrix products: rotation into the cache, norms, the feed-forward's gate.

Takes and gives tensors on one GPU.
"""

from __future__ import annotations

import torch
import triton

from app.engine.kernels import triton_rows as programs


def rotate_and_store(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    signed_sin: torch.Tensor,
    slots: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor] | None,
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
    rows, all_heads, head_dim = qkv.shape
    kv_heads = keys.shape[1]
    heads = all_heads - 2 * kv_heads
    query = torch.empty(rows, heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    rotated = cos.shape[-1]
    programs.rotate_and_store[(rows, all_heads)](
        qkv, cos, signed_sin, slots, keys, values, query, *(norms or (qkv, qkv)), eps,
        qkv.stride(0), keys.stride(0), keys.stride(1),
        HAS_NORMS=norms is not None, HEADS=heads, KV_HEADS=kv_heads, HEAD_DIM=head_dim, DIM_PADDED=triton.next_power_of_2(head_dim),
        ROTATED=rotated, num_warps=1,
    )  # fmt: skip
    return query


def add_rms_norm(hidden: torch.Tensor, update: torch.Tensor | None, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Add `update` to `hidden` in place, then normalise: (rows, hidden) -> (rows, hidden)."""
    rows, size = hidden.shape
    normed = torch.empty_like(hidden)
    programs.add_rms_norm[(rows,)](
        hidden, hidden if update is None else update, weight, normed, eps,
        SIZE=size, PADDED=triton.next_power_of_2(size), ADDS=update is not None, num_warps=8,
    )  # fmt: skip
    return normed


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up: (rows, 2 * inner) -> (rows, inner)."""
    rows, doubled = gate_up.shape
    inner = doubled // 2
    output = torch.empty(rows, inner, dtype=gate_up.dtype, device=gate_up.device)
    piece = 1024
    programs.silu_and_mul[(rows, triton.cdiv(inner, piece))](gate_up, output, INNER=inner, PIECE=piece, num_warps=4)
    return output
