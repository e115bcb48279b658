"""What the GPU's kernels must give, computed in float64 with torch alone, and the random inputs to try them on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)

from app.engine.kernels.attention import best_queries_per_tile, decode_attention, prefill_attention
from app.engine.kernels.rows import add_rms_norm, rotate_and_store, silu_and_mul


@dataclass(frozen=True)
class Heads:
    """Shapes of attention."""

    heads: int = 8
    kv_heads: int = 2
    head_dim: int = 64
    block_size_tokens: int = 16


@dataclass(frozen=True)
class Cache:
    """Random keys and values in scattered blocks; every slot that belongs to nobody is NaN."""

    keys: torch.Tensor
    values: torch.Tensor
    tables: torch.Tensor
    size: int

    @classmethod
    def random(cls, heads: Heads, lengths: Sequence[int], dtype: torch.dtype, device: str) -> Cache:
        """For sequences of these lengths, in tokens."""
        size = heads.block_size_tokens
        blocks = -(-max(lengths) // size)
        tables = torch.randperm(len(lengths) * blocks + 3)[: len(lengths) * blocks].view(-1, blocks)
        shape = ((len(lengths) * blocks + 3) * size, heads.kv_heads, heads.head_dim)
        used = torch.zeros(shape[0], dtype=torch.bool)
        for table, length in zip(tables, lengths, strict=True):
            used[_slots(table, length, size)] = True
        keys, values = (torch.randn(shape).masked_fill_(~used[:, None, None], torch.nan) for _ in range(2))
        return cls(keys.to(device, dtype), values.to(device, dtype), tables.int().to(device), size)


def _slots(table: torch.Tensor, length: int, size: int) -> torch.Tensor:
    return (table.long()[:, None] * size + torch.arange(size, device=table.device)).flatten()[:length]


def attended(
    query: torch.Tensor, cache: Cache, row: int, length: int, scale: float, window: int, softcap: float
) -> torch.Tensor:
    """The last queries (queries, heads, head_dim) of sequence `row`, in float64."""
    slots = _slots(cache.tables[row], length, cache.size)
    group = query.shape[1] // cache.keys.shape[1]
    keys, values = (each[slots].double().repeat_interleave(group, 1) for each in (cache.keys, cache.values))
    scores = torch.einsum("qhd,thd->hqt", query.double(), keys) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    places = torch.arange(length, device=query.device)
    positions = places[length - len(query) :, None]
    visible = (places <= positions) & (places > positions - (window or length + 1))
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    return torch.einsum("hqt,thd->qhd", weights, values)


def decode_error(
    heads: Heads, lengths: Sequence[int], dtype: torch.dtype, device: str, window: int = 0, softcap: float = 0.0
) -> float:
    """The largest difference of `decode_attention` to the oracle."""
    torch.manual_seed(len(lengths))
    cache = Cache.random(heads, lengths, dtype, device)
    query = torch.randn(len(lengths), heads.heads, heads.head_dim).to(device, dtype)
    scale = heads.head_dim**-0.5
    found = decode_attention(
        query,
        cache.keys,
        cache.values,
        cache.tables,
        torch.tensor(lengths, dtype=torch.int32, device=device),
        block_size_tokens=cache.size,
        scale=scale,
        window_tokens=window,
        softcap=softcap,
    ).view_as(query)
    return max(
        float((found[row] - attended(query[row : row + 1], cache, row, length, scale, window, softcap)[0]).abs().max())
        for row, length in enumerate(lengths)
    )


def prefill_error(
    heads: Heads,
    lengths: Sequence[int],
    queries: Sequence[int],
    dtype: torch.dtype,
    device: str,
    window: int = 0,
    softcap: float = 0.0,
) -> float:
    """The largest difference of `prefill_attention` to the oracle."""
    torch.manual_seed(len(lengths))
    cache = Cache.random(heads, lengths, dtype, device)
    parts = [torch.randn(count, heads.heads, heads.head_dim).to(device, dtype) for count in queries]
    scale = heads.head_dim**-0.5

    def ints(values: object) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    starts = [sum(queries[:index]) for index in range(len(queries) + 1)]
    step = best_queries_per_tile(heads.heads, heads.kv_heads, heads.head_dim, dtype)
    tiles = [(row, first) for row, count in enumerate(queries) for first in range(0, count, step)]
    found = prefill_attention(
        torch.cat(parts),
        cache.keys,
        cache.values,
        cache.tables,
        ints(lengths),
        ints(starts),
        ints(tiles),
        queries_per_tile=step,
        block_size_tokens=cache.size,
        scale=scale,
        window_tokens=window,
        softcap=softcap,
    )
    expected = [
        attended(part, cache, row, lengths[row], scale, window, softcap).flatten(1) for row, part in enumerate(parts)
    ]
    return float((found - torch.cat(expected)).abs().max())


def rotation_error(
    heads: Heads, rows: int, rotated: int, dtype: torch.dtype, device: str, *, has_norms: bool = False
) -> float:
    """The largest difference of `rotate_and_store` to torch's own operations, in what it returns and what it stores."""
    torch.manual_seed(rows)
    query_heads, kv_heads, head_dim = heads.heads, heads.kv_heads, heads.head_dim
    qkv = torch.randn(rows, query_heads + 2 * kv_heads, head_dim).to(device, dtype)
    angles = torch.randn(rows, 1, rotated // 2, device=device)
    cos = torch.cat((angles.cos(), angles.cos()), -1).to(dtype)
    sin = torch.cat((-angles.sin(), angles.sin()), -1).to(dtype)
    keys, values = (torch.zeros(4 * rows, kv_heads, head_dim, dtype=dtype, device=device) for _ in range(2))
    slots = torch.randperm(4 * rows, device=device)[:rows]
    norms = (torch.randn(head_dim).to(device, dtype), torch.randn(head_dim).to(device, dtype)) if has_norms else None
    query = rotate_and_store(qkv, cos, sin, slots, keys, values, norms, 1e-6)
    parts = qkv.split((query_heads, kv_heads, kv_heads), dim=1)
    wanted = [parts[0], parts[1]]
    if norms is not None:
        wanted = [
            norm * F.rms_norm(part.float(), (head_dim,), None, 1e-6).to(dtype)
            for norm, part in zip(norms, wanted, strict=True)
        ]
    turned = [_rotated(part.float(), cos.float(), sin.float()) for part in wanted]
    differences = (query - turned[0], keys[slots] - turned[1], values[slots] - parts[2])
    return max(float(each.abs().max()) for each in differences)


def _rotated(part: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = part[..., : cos.shape[-1]].chunk(2, dim=-1)
    turned = torch.cat((first, second), -1) * cos + torch.cat((second, first), -1) * sin
    return torch.cat((turned, part[..., cos.shape[-1] :]), -1)


def norm_error(rows: int, size: int, dtype: torch.dtype, device: str) -> float:
    """The largest difference of `add_rms_norm`, with and without something to add."""
    torch.manual_seed(size)
    hidden, update = (torch.randn(rows, size).to(device, dtype) for _ in range(2))
    weight = torch.randn(size).to(device, dtype)

    def reference(summed: torch.Tensor) -> torch.Tensor:
        return weight * F.rms_norm(summed.float(), (size,), None, 1e-5).to(dtype)

    added = hidden.clone()
    differences = (
        add_rms_norm(added, update, weight, 1e-5) - reference(hidden + update),
        added - (hidden + update),
        add_rms_norm(hidden.clone(), None, weight, 1e-5) - reference(hidden),
    )
    return max(float(each.abs().max()) for each in differences)


def gate_error(rows: int, inner: int, dtype: torch.dtype, device: str) -> float:
    """The largest difference of `silu_and_mul`."""
    torch.manual_seed(inner)
    gate_up = torch.randn(rows, 2 * inner).to(device, dtype)
    gate, up = gate_up.chunk(2, -1)
    return float((silu_and_mul(gate_up) - F.silu(gate) * up).abs().max())
