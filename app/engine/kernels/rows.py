"""The functions of `app.engine.row_ops` for a GPU: one kernel each.

Takes and gives contiguous tensors on one GPU.
"""

from __future__ import annotations

import torch
import triton

from app.engine.kernels import triton_rows as programs

_CHANNELS_PER_PROGRAM = 1024


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
    """See `app.engine.row_ops.rotate_and_store`."""
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
    """See `app.engine.row_ops.add_rms_norm`."""
    rows, size = hidden.shape
    normed = torch.empty_like(hidden)
    programs.add_rms_norm[(rows,)](
        hidden, hidden if update is None else update, weight, normed, eps,
        SIZE=size, PADDED=triton.next_power_of_2(size), ADDS=update is not None, num_warps=8,
    )  # fmt: skip
    return normed


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """See `app.engine.row_ops.silu_and_mul`."""
    *rows, doubled = gate_up.shape
    inner = doubled // 2
    output = torch.empty(*rows, inner, dtype=gate_up.dtype, device=gate_up.device)
    grid = (output.numel() // inner, triton.cdiv(inner, _CHANNELS_PER_PROGRAM))
    programs.silu_and_mul[grid](gate_up, output, INNER=inner, PIECE=_CHANNELS_PER_PROGRAM, num_warps=4)
    return output
