"""What the decoder must know of a model: its shapes and whatever changes its mathematics.

Plain values that every family's config.json is turned into; knows neither configs nor tensors.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LinearScaling:
    """Positions are divided by `factor`."""

    factor: float


@dataclass(frozen=True)
class Llama3Scaling:
    """Long waves are stretched by `factor`, short ones kept, those in between blended (Llama 3.1)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class YarnScaling:
    """A ramp over the channels from kept to stretched by `factor`; the betas are rotations in the original context.

    With `truncate`, the ramp begins and ends at whole channels.
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float
    truncate: bool


@dataclass(frozen=True)
class LongRopeScaling:
    """One factor for each pair of channels: another set for sequences beyond the original context."""

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_max_position_embeddings: int


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | LongRopeScaling


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding of the first `rotary_dim` channels of a head.

    `theta` is the base period; cosines and sines are multiplied by `attention_factor`.
    """

    theta: float
    rotary_dim: int
    attention_factor: float = 1.0
    scaling: RopeScaling | None = None


@dataclass(frozen=True)
class ExpertsConfig:
    """A router and its experts, of which every token visits `experts_per_token`.

    With `normalised`, the weights of those that are visited add up to 1.
    """

    num_experts: int
    experts_per_token: int
    intermediate_size: int
    normalised: bool


@dataclass(frozen=True)
class LayerConfig:
    """How one layer differs from the others.

    A token sees itself and the `sliding_window - 1` tokens before it, or everything with None. `experts` take the
    place of the dense feed-forward network.
    """

    sliding_window: int | None = None
    experts: ExpertsConfig | None = None


@dataclass(frozen=True)
class DecoderConfig:
    """A causal decoder; families differ only in these values.

    `head_norms` are norms of every query and key head before they are rotated. `intermediate_size` is that of the
    dense feed-forward networks.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    head_norms: bool
    rope: RopeConfig
    layers: tuple[LayerConfig, ...]

    @property
    def num_layers(self) -> int:
        """How many layers there are."""
        return len(self.layers)

    @property
    def kv_elements_per_token(self) -> int:
        """Elements of one token's keys and values in all layers together."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim
