"""config.json as the decoder reads it.

Takes the parsed file of a config that was already accepted (`app.model_support` refuses the others),
gives plain numbers. Understands both spellings of rope: `rope_parameters`, and the older `rope_theta` with
`rope_scaling`. Knows no tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding: the base period and how it is stretched.

    `kind` is "default", "linear" (uses `factor`) or "llama3" (uses every field).
    """

    theta: float
    kind: str
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class DecoderConfig:
    """What changes the decoder's shapes or its mathematics; families differ only in these values."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    rope: RopeConfig


def parse_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """The decoder's view of a llama config.json; absent fields take the family's defaults."""
    num_heads = raw["num_attention_heads"]
    attention_bias = bool(raw.get("attention_bias"))
    return DecoderConfig(
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"],
        num_layers=raw["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=raw.get("num_key_value_heads") or num_heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // num_heads,
        max_position_embeddings=_max_positions(raw),
        rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
        tie_word_embeddings=bool(raw.get("tie_word_embeddings")),
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        mlp_bias=bool(raw.get("mlp_bias")),
        rope=_rope_config(raw),
    )


def _rope_config(raw: Mapping[str, Any]) -> RopeConfig:
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    return RopeConfig(
        theta=float(rope.get("rope_theta") or raw.get("rope_theta") or 10_000.0),
        kind=rope.get("rope_type") or rope.get("type") or "default",
        factor=rope.get("factor", 1.0),
        low_freq_factor=rope.get("low_freq_factor", 1.0),
        high_freq_factor=rope.get("high_freq_factor", 4.0),
        original_max_position_embeddings=rope.get("original_max_position_embeddings") or _max_positions(raw),
    )


def _max_positions(raw: Mapping[str, Any]) -> int:
    return int(raw.get("max_position_embeddings", 2048))
