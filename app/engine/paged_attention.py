"""Attention with our kernels, on steps of fixed shapes: what a CUDA graph needs.

Everything that changes from step to step is in tensors that stay where they are. Importing this imports Triton.
Knows neither projections nor scheduling.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from app.engine.attention import AttentionSpec
from app.engine.kernels import rows
from app.engine.kernels.attention import decode_attention, prefill_attention
from app.engine.kv_cache import KVCache


@dataclass(frozen=True)
class DecodeBatch:
    """One token of each sequence. Rows of length 0 are padding."""

    cache: KVCache
    slots: torch.Tensor  # (rows,)
    block_tables: torch.Tensor  # (rows, blocks) int32
    lengths: torch.Tensor  # (rows,) int32

    ops = rows

    def attend(self, spec: AttentionSpec, query: torch.Tensor) -> torch.Tensor:
        """(rows, heads, head_dim) -> (rows, heads * head_dim)."""
        return decode_attention(
            query,
            *self.cache.layers[spec.layer],
            self.block_tables,
            self.lengths,
            block_size_tokens=self.cache.block_size_tokens,
            scale=spec.scale_of(query.shape[-1]),
            window_tokens=spec.sliding_window or 0,
            softcap=spec.softcap or 0.0,
        )


@dataclass(frozen=True)
class MixedBatch:
    """The last tokens of each sequence, any number of them. Rows that no tile holds are padding."""

    cache: KVCache
    slots: torch.Tensor  # (tokens,)
    block_tables: torch.Tensor  # (sequences, blocks) int32
    lengths: torch.Tensor  # (sequences,) int32
    query_starts: torch.Tensor  # (sequences + 1,) int32
    tiles: torch.Tensor  # (tiles, 2) int32
    queries_per_tile: int

    ops = rows

    def attend(self, spec: AttentionSpec, query: torch.Tensor) -> torch.Tensor:
        """(tokens, heads, head_dim) -> (tokens, heads * head_dim)."""
        return prefill_attention(
            query,
            *self.cache.layers[spec.layer],
            self.block_tables,
            self.lengths,
            self.query_starts,
            self.tiles,
            queries_per_tile=self.queries_per_tile,
            block_size_tokens=self.cache.block_size_tokens,
            scale=spec.scale_of(query.shape[-1]),
            window_tokens=spec.sliding_window or 0,
            softcap=spec.softcap or 0.0,
        )
