"""Attention over the paged KV cache: single queries of many sequences, or the last queries of several.

Takes queries, the cache and block tables on one GPU, gives what every query attends to.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton

from app.engine.kernels import triton_attention as programs

_MOST_SPLITS = 32
# Two waves of an H100's 132 multiprocessors, or thereabouts for its kin.
_ENOUGH_PROGRAMS = 264
_LOG2E = 1.4426950408889634


class _Tiling(NamedTuple):
    """How much one program holds in shared memory: rows of queries, pieces of the context in flight."""

    rows: int
    tokens_per_piece: int
    stages: int


def best_queries_per_tile(heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
    """How many queries of a sequence one tile of `prefill_attention` should take."""
    group = triton.next_power_of_2(heads // kv_heads)
    return int(max(1, _tiling(head_dim, dtype).rows // group))


def _tiling(head_dim: int, dtype: torch.dtype) -> _Tiling:
    head_bytes = triton.next_power_of_2(head_dim) * dtype.itemsize
    # Wide heads in small pieces: an L4 or A10 has 99 KiB for each program, an H100 227.
    return _Tiling(128, 64, 3) if head_bytes <= 256 else _Tiling(64, 32, 2)


def decode_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_tables: torch.Tensor,
    lengths: torch.Tensor,
    *,
    block_size_tokens: int,
    scale: float,
    window_tokens: int = 0,
    softcap: float = 0.0,
) -> torch.Tensor:
    """One query per row over the first `lengths` tokens of its blocks.

    Args:
        query: (rows, heads, head_dim).
        keys: (slots, kv_heads, head_dim).
        values: As keys.
        block_tables: (rows, blocks) int32.
        lengths: (rows,) int32, the query's own token included; 0 gives zeros.
        block_size_tokens: Slots of a block.
        scale: Of the scores.
        window_tokens: How many tokens back a query may look, itself included; 0 is all.
        softcap: Scores become softcap * tanh(score / softcap); 0 leaves them.

    Returns:
        (rows, heads * head_dim).
    """
    rows, heads, head_dim = query.shape
    kv_heads = keys.shape[1]
    splits = _splits_for(rows, kv_heads)
    partial = torch.empty(rows, heads, splits, head_dim, dtype=torch.float32, device=query.device)
    weights = torch.empty(rows, heads, splits, dtype=torch.float32, device=query.device)
    group = heads // kv_heads
    tiling = _tiling(head_dim, query.dtype)
    programs.attend_split[(rows, kv_heads, splits)](
        query, keys, values, block_tables, lengths, partial, weights,
        query.stride(0), query.stride(1), keys.stride(0), keys.stride(1), block_tables.stride(0),
        scale * _LOG2E, softcap, window_tokens, splits,
        HEADS=heads, GROUP=group, GROUP_PADDED=max(16, triton.next_power_of_2(group)),
        HEAD_DIM=head_dim, DIM_PADDED=triton.next_power_of_2(head_dim), BLOCK=block_size_tokens,
        PIECE=tiling.tokens_per_piece, num_warps=4, num_stages=2,
    )  # fmt: skip
    output = torch.empty(rows, heads * head_dim, dtype=query.dtype, device=query.device)
    programs.join_splits[(rows, heads)](
        partial, weights, output, splits,
        HEADS=heads, HEAD_DIM=head_dim, DIM_PADDED=triton.next_power_of_2(head_dim),
        MOST_SPLITS=_MOST_SPLITS, num_warps=2,
    )  # fmt: skip
    return output


def prefill_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_tables: torch.Tensor,
    lengths: torch.Tensor,
    query_starts: torch.Tensor,
    tiles: torch.Tensor,
    *,
    queries_per_tile: int,
    block_size_tokens: int,
    scale: float,
    window_tokens: int = 0,
    softcap: float = 0.0,
) -> torch.Tensor:
    """The last queries of several sequences, each over everything before it in its own blocks.

    Args:
        query: (tokens, heads, head_dim), sequence after sequence.
        keys: (slots, kv_heads, head_dim); those of the queries' tokens are in it.
        values: As keys.
        block_tables: (sequences, blocks) int32.
        lengths: (sequences,) int32, tokens of each sequence up to its last query.
        query_starts: (sequences + 1,) int32, where each sequence's queries begin.
        tiles: (tiles, 2) int32 of (sequence, first query within it); one of a sequence without queries computes nothing.
        queries_per_tile: How far apart they are.
        block_size_tokens: Slots of a block.
        scale: Of the scores.
        window_tokens: How many tokens back a query may look, itself included; 0 is all.
        softcap: Scores become softcap * tanh(score / softcap); 0 leaves them.

    Returns:
        (tokens, heads * head_dim).
    """
    tokens, heads, head_dim = query.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    tiling = _tiling(head_dim, query.dtype)
    output = torch.empty(tokens, heads * head_dim, dtype=query.dtype, device=query.device)
    programs.attend_tile[(len(tiles), kv_heads)](
        query, keys, values, block_tables, lengths, query_starts, tiles, output,
        query.stride(0), query.stride(1), keys.stride(0), keys.stride(1), block_tables.stride(0),
        scale * _LOG2E, softcap, window_tokens,
        HEADS=heads, GROUP=group, GROUP_PADDED=triton.next_power_of_2(group),
        HEAD_DIM=head_dim, DIM_PADDED=triton.next_power_of_2(head_dim), BLOCK=block_size_tokens,
        QUERIES=queries_per_tile, PIECE=tiling.tokens_per_piece,
        num_warps=8 if tiling.rows > 64 else 4, num_stages=tiling.stages,
    )  # fmt: skip
    return output


def _splits_for(rows: int, kv_heads: int) -> int:
    """Over how many programs one row's context is spread, so that few rows fill the GPU, too."""
    return max(1, min(_MOST_SPLITS, _ENOUGH_PROGRAMS // (rows * kv_heads)))
