"""What a step's tokens attend to, whoever computes it.

`AttentionSpec` is what differs between layers. A batch knows where the step's keys and values lie, and brings the
operations on rows that go with it. `app.engine.sdpa_attention` is torch's own, `app.engine.paged_attention` a GPU's
kernels. Knows neither projections nor scheduling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from app.engine.kv_cache import KVCache
from app.engine.row_ops import RowOps


@dataclass(frozen=True)
class AttentionSpec:
    """One layer's attention.

    A token sees itself and the `sliding_window - 1` tokens before it, or everything before it with None. Scores are
    multiplied by `scale`, 1 / sqrt(head_dim) with None; with `softcap` they become softcap * tanh(score / softcap).
    """

    layer: int
    sliding_window: int | None = None
    scale: float | None = None
    softcap: float | None = None

    def scale_of(self, head_dim: int) -> float:
        """The scale for heads of `head_dim` channels."""
        return head_dim**-0.5 if self.scale is None else self.scale


class AttentionBatch(Protocol):
    """One step: its cache, the slot of each of its tokens, and who sees what."""

    @property
    def cache(self) -> KVCache:
        """Holds what the step's tokens see and what they add."""

    @property
    def slots(self) -> torch.Tensor:
        """Where each token's key and value go, (tokens,)."""

    @property
    def ops(self) -> RowOps:
        """What is computed between two matrix products."""

    def attend(self, spec: AttentionSpec, query: torch.Tensor) -> torch.Tensor:
        """Queries (tokens, heads, head_dim), whose keys and values are in the cache -> (tokens, heads * head_dim)."""


def store(batch: AttentionBatch, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
    """Put keys and values (tokens, kv_heads, head_dim) of the step's tokens into the cache."""
    keys, values = batch.cache.layers[layer]
    keys.index_copy_(0, batch.slots, key)
    values.index_copy_(0, batch.slots, value)
