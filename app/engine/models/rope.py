"""Rotary position embedding: frequencies from the config, tables from positions, rotation of heads.

Everything is computed in float32 and cast once. Knows neither weights nor attention.
"""

from __future__ import annotations

import math

import torch

from app.engine.models.config import RopeConfig


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> torch.Tensor:
    """Radians per position of each pair of channels, (head_dim / 2,), float32.

    Raises:
        ValueError: A kind of scaling that is not known here.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = 1.0 / (rope.theta**exponents)
    if rope.kind == "default":
        return frequencies
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "llama3":
        return _llama3_frequencies(rope, frequencies)
    raise ValueError(f"unknown rope scaling {rope.kind!r}")


def _llama3_frequencies(rope: RopeConfig, frequencies: torch.Tensor) -> torch.Tensor:
    """Stretch the long waves by `factor`, keep the short ones, blend in between (Llama 3.1)."""
    low, high = rope.low_freq_factor, rope.high_freq_factor
    context_tokens = rope.original_max_position_embeddings
    wavelengths = 2 * math.pi / frequencies
    stretched = frequencies / rope.factor
    share = (context_tokens / wavelengths - low) / (high - low)
    blended = (1 - share) * frequencies / rope.factor + share * frequencies
    long_or_blended = torch.where(wavelengths > context_tokens / low, stretched, blended)
    return torch.where(wavelengths < context_tokens / high, frequencies, long_or_blended)


class RotaryEmbedding:
    """Makes the cosine and sine tables of one step.

    Args:
        rope: How the frequencies are made.
        head_dim: Channels of one head; all of them are rotated.
        device: Where the positions will be.
    """

    def __init__(self, rope: RopeConfig, head_dim: int, device: torch.device):
        # Computed on the CPU wherever it is used: a GPU's powers differ in the last bit.
        self._inverse_frequencies = inverse_frequencies(rope, head_dim).to(device)

    def tables(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and signed sines, each (tokens, 1, head_dim), for positions (tokens,).

        The first half of the sines is negated here, once a step, so that `rotate` need not negate half of
        every head in every layer.
        """
        angles = positions[:, None].float() * self._inverse_frequencies
        cosines, sines = angles.cos(), angles.sin()
        cos = torch.cat((cosines, cosines), dim=-1)
        signed_sin = torch.cat((-sines, sines), dim=-1)
        return cos[:, None].to(dtype), signed_sin[:, None].to(dtype)


def rotate(heads: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor) -> torch.Tensor:
    """Rotate (tokens, heads, head_dim) by the tables of `RotaryEmbedding.tables`; gives a new tensor."""
    first, second = heads.chunk(2, dim=-1)
    swapped = torch.cat((second, first), dim=-1)
    return (heads * cos).add_(swapped.mul_(signed_sin))
