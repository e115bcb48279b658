"""The sizes of a model that cache and sampler follow from, whoever computes it."""

from __future__ import annotations

from typing import Protocol


class ModelShape(Protocol):
    """Plain numbers; `app.families.decoder_config.DecoderConfig` has them, too."""

    @property
    def vocab_size(self) -> int:
        """Logits of a row."""

    @property
    def hidden_size(self) -> int:
        """Channels of a hidden state."""

    @property
    def intermediate_size(self) -> int:
        """Channels within a feed-forward network."""

    @property
    def num_layers(self) -> int:
        """Layers that keep keys and values."""

    @property
    def num_heads(self) -> int:
        """Query heads of a layer."""

    @property
    def num_kv_heads(self) -> int:
        """Key heads of a layer."""

    @property
    def head_dim(self) -> int:
        """Channels of a head."""

    @property
    def max_position_embeddings(self) -> int:
        """Tokens of the longest sequence."""

    @property
    def kv_elements_per_token(self) -> int:
        """Elements of one token's keys and values in all layers together."""
