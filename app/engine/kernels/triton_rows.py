"""The programs that take rows of activations: rotation into the cache, norms, the feed-forward's gate."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rotate_and_store(
    qkv, cos, signed_sin, slots, keys, values, query, query_norm, key_norm, eps,
    row_stride, slot_stride, kv_head_stride,
    HAS_NORMS: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_PADDED: tl.constexpr,
    ROTATED: tl.constexpr,
):  # fmt: skip
    # 64 bits: a long step's rows lie gigabytes apart.
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    dims = tl.arange(0, DIM_PADDED)
    is_dim = dims < HEAD_DIM
    source = qkv + row * row_stride + head * HEAD_DIM
    mine = tl.load(source + dims, mask=is_dim, other=0.0)
    if head < HEADS + KV_HEADS:
        half = ROTATED // 2
        turns = dims < ROTATED
        partner = tl.where(dims < half, dims + half, dims - half)
        other = tl.load(source + partner, mask=turns, other=0.0)
        if HAS_NORMS:
            wide = mine.to(tl.float32)
            scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / HEAD_DIM + eps)
            norm = tl.load(key_norm + dims, mask=is_dim, other=0.0)
            partner_norm = tl.load(key_norm + partner, mask=turns, other=0.0)
            if head < HEADS:
                norm = tl.load(query_norm + dims, mask=is_dim, other=0.0)
                partner_norm = tl.load(query_norm + partner, mask=turns, other=0.0)
            other = partner_norm * (other.to(tl.float32) * scale).to(mine.dtype)
            mine = norm * (wide * scale).to(mine.dtype)
        c = tl.load(cos + row * ROTATED + dims, mask=turns, other=1.0)
        s = tl.load(signed_sin + row * ROTATED + dims, mask=turns, other=0.0)
        turned = mine.to(tl.float32) * c.to(tl.float32) + other.to(tl.float32) * s.to(tl.float32)
        mine = turned.to(mine.dtype)
    if head < HEADS:
        tl.store(query + (row * HEADS + head) * HEAD_DIM + dims, mine, mask=is_dim)
    else:
        slot = tl.load(slots + row)
        if head < HEADS + KV_HEADS:
            place = slot * slot_stride + (head - HEADS) * kv_head_stride
            tl.store(keys + place + dims, mine, mask=is_dim)
        else:
            place = slot * slot_stride + (head - HEADS - KV_HEADS) * kv_head_stride
            tl.store(values + place + dims, mine, mask=is_dim)


@triton.jit
def add_rms_norm(hidden, update, weight, normed, eps, SIZE: tl.constexpr, PADDED: tl.constexpr, ADDS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, PADDED)
    inside = at < SIZE
    x = tl.load(hidden + row * SIZE + at, mask=inside, other=0.0)
    if ADDS:
        x = x + tl.load(update + row * SIZE + at, mask=inside, other=0.0)
        tl.store(hidden + row * SIZE + at, x, mask=inside)
    wide = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / SIZE + eps)
    w = tl.load(weight + at, mask=inside, other=0.0)
    tl.store(normed + row * SIZE + at, w * (wide * scale).to(w.dtype), mask=inside)


@triton.jit
def silu_and_mul(gate_up, output, INNER: tl.constexpr, PIECE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * PIECE + tl.arange(0, PIECE)
    inside = at < INNER
    gate = tl.load(gate_up + row * 2 * INNER + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * INNER + INNER + at, mask=inside, other=0.0)
    silu = (gate / (1.0 + tl.exp(-gate))).to(up.dtype)
    tl.store(output + row * INNER + at, silu * up, mask=inside)
