"""What the engine asks of a model, whoever computes it. Knows no architecture."""

from __future__ import annotations

from typing import Protocol

import torch

from app.engine.attention import AttentionBatch, DecodeAttention
from app.engine.models.shape import ModelShape


class LanguageModel(Protocol):
    """A causal model over flattened sequences.

    `dtype` is that of activations and KV cache. `may_be_captured` says whether a step of it can be a CUDA graph.
    """

    dtype: torch.dtype
    device: torch.device
    may_be_captured: bool

    @property
    def config(self) -> ModelShape:
        """Its sizes."""

    def __call__(
        self, token_ids: torch.Tensor, positions: torch.Tensor, batch: AttentionBatch | DecodeAttention
    ) -> torch.Tensor:
        """Hidden states (tokens, hidden) for token_ids (tokens,) at positions (tokens,); writes the KV cache."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(rows, hidden) -> (rows, vocabulary)."""
