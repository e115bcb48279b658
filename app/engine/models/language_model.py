"""What the engine asks of a model, whoever computes it. Knows no architecture."""

from __future__ import annotations

from typing import Protocol

import torch

from app.engine.attention import AttentionBatch
from app.engine.models.shape import ModelShape


class LanguageModel(Protocol):
    """A causal model over flattened sequences.

    `dtype` is that of activations and KV cache. Steps of up to `max_captured_tokens` can be CUDA graphs, of any size
    with None.
    """

    dtype: torch.dtype
    device: torch.device
    max_captured_tokens: int | None

    @property
    def config(self) -> ModelShape:
        """Its sizes."""

    def __call__(self, token_ids: torch.Tensor, positions: torch.Tensor, batch: AttentionBatch) -> torch.Tensor:
        """Hidden states (tokens, hidden) for token_ids (tokens,) at positions (tokens,); writes the KV cache."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(rows, hidden) -> (rows, vocabulary)."""
