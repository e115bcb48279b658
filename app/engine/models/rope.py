"""Rotary position embedding: frequencies from the config, tables from positions.

Everything is computed in float32 and cast once. Knows neither weights nor attention.
"""

from __future__ import annotations

import logging
import math

import torch

from app.families.decoder_config import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeConfig,
    YarnScaling,
)

logger = logging.getLogger(__name__)


def inverse_frequencies(rope: RopeConfig, max_model_len_tokens: int) -> torch.Tensor:
    """Radians per position of each pair of channels, (rotary_dim / 2,), float32, for sequences of up to so many tokens."""
    exponents = torch.arange(0, rope.rotary_dim, 2, dtype=torch.float32) / rope.rotary_dim
    frequencies = 1.0 / (rope.theta**exponents)
    match rope.scaling:
        case None:
            return frequencies
        case LinearScaling(factor):
            return frequencies / factor
        case Llama3Scaling():
            return _llama3_frequencies(rope.scaling, frequencies)
        case YarnScaling():
            return _yarn_frequencies(rope.scaling, rope, frequencies)
        case LongRopeScaling():
            factors = _longrope_factors(rope.scaling, max_model_len_tokens)
            return 1.0 / (torch.tensor(factors, dtype=torch.float32) * rope.theta**exponents)


def _llama3_frequencies(scaling: Llama3Scaling, frequencies: torch.Tensor) -> torch.Tensor:
    """Stretch the long waves by `factor`, keep the short ones, blend in between (Llama 3.1)."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    context_tokens = scaling.original_max_position_embeddings
    wavelengths = 2 * math.pi / frequencies
    stretched = frequencies / scaling.factor
    share = (context_tokens / wavelengths - low) / (high - low)
    blended = (1 - share) * frequencies / scaling.factor + share * frequencies
    long_or_blended = torch.where(wavelengths > context_tokens / low, stretched, blended)
    return torch.where(wavelengths < context_tokens / high, frequencies, long_or_blended)


def _yarn_frequencies(scaling: YarnScaling, rope: RopeConfig, frequencies: torch.Tensor) -> torch.Tensor:
    """Keep the first pairs of channels, stretch the last ones by `factor`, blend along a ramp (YaRN)."""

    def pair_that_turns(rotations: float) -> float:
        """Which pair of channels makes so many rotations over the original context."""
        waves = scaling.original_max_position_embeddings / (rotations * 2 * math.pi)
        return rope.rotary_dim * math.log(waves) / (2 * math.log(rope.theta))

    first, last = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope.rotary_dim - 1)
    pairs = torch.arange(len(frequencies), dtype=torch.float32)
    ramp = ((pairs - first) / (last - first or 0.001)).clamp(0, 1)
    return frequencies / scaling.factor * ramp + frequencies * (1 - ramp)


def _longrope_factors(scaling: LongRopeScaling, max_model_len_tokens: int) -> tuple[float, ...]:
    """The short ones if no sequence can leave the original context: keys in the cache keep the factors they got."""
    original_tokens = scaling.original_max_position_embeddings
    if max_model_len_tokens <= original_tokens:
        return scaling.short_factors
    logger.warning(
        "long rope factors for all sequences: shorter ones are answered better with --max-model-len %d", original_tokens
    )
    return scaling.long_factors


class RotaryEmbedding:
    """Makes the cosine and sine tables of one step.

    Args:
        rope: How the frequencies are made.
        device: Where the positions will be.
        max_model_len_tokens: The longest sequence, which some scalings depend on.
    """

    def __init__(self, rope: RopeConfig, device: torch.device, max_model_len_tokens: int):
        # Computed on the CPU wherever it is used: a GPU's powers differ in the last bit.
        self._inverse_frequencies = inverse_frequencies(rope, max_model_len_tokens).to(device)
        self._attention_factor = rope.attention_factor

    def tables(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and signed sines, each (tokens, 1, rotary_dim), for positions (tokens,).

        The first half of the sines is negated here, once a step, so that a rotation need not negate
        half of every head in every layer.
        """
        angles = positions[:, None].float() * self._inverse_frequencies
        cosines, sines = angles.cos() * self._attention_factor, angles.sin() * self._attention_factor
        cos = torch.cat((cosines, cosines), dim=-1)
        signed_sin = torch.cat((-sines, sines), dim=-1)
        return cos[:, None].to(dtype), signed_sin[:, None].to(dtype)
