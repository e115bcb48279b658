"""The decoder of every family that is served, on the meta device until the skeleton binds it.

Takes the flattened tokens of a step (sequences of any lengths, one after the other) and gives hidden
states. What differs between families is in `DecoderConfig`. Parameter names are the checkpoints', except for what
the arena lays side by side: `qkv_proj` is q, k, v and `gate_up_proj` is gate, up. Knows neither where the weights
live nor how the KV cache is laid out.
"""

from __future__ import annotations

import torch
from torch import nn

from app.engine.attention import AttentionBatch, AttentionSpec, DecodeAttention, attend
from app.engine.models.linear import Embedding, Linear, product
from app.engine.models.mlp import MLP
from app.engine.models.moe import SparseMLP
from app.engine.models.norm import RMSNorm
from app.engine.models.rope import RotaryEmbedding, rotate
from app.families.decoder_config import DecoderConfig

_Tables = tuple[torch.Tensor, torch.Tensor]
_Batch = AttentionBatch | DecodeAttention


class Attention(nn.Module):
    """Projections, norms of the heads and rotary embedding around `app.engine.attention.attend`."""

    def __init__(self, config: DecoderConfig, layer: int, dtype: torch.dtype):
        super().__init__()
        heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self._spec = AttentionSpec(layer, config.layers[layer].sliding_window)
        self._query_heads = heads
        self._rotated_heads = heads + kv_heads
        self._heads_shape = (-1, heads + 2 * kv_heads, head_dim)
        qkv_size = (heads + 2 * kv_heads) * head_dim
        self.qkv_proj = Linear(config.hidden_size, qkv_size, bias=config.qkv_bias, dtype=dtype)
        self.o_proj = Linear(heads * head_dim, config.hidden_size, bias=config.output_bias, dtype=dtype)
        self._has_head_norms = config.head_norms
        if config.head_norms:
            self.q_norm = RMSNorm(head_dim, config.rms_norm_eps, dtype)
            self.k_norm = RMSNorm(head_dim, config.rms_norm_eps, dtype)

    def forward(self, hidden: torch.Tensor, tables: _Tables, batch: _Batch) -> torch.Tensor:
        """(tokens, hidden) -> (tokens, hidden)."""
        qkv = self.qkv_proj(hidden).view(self._heads_shape)  # (tokens, q heads + k heads + v heads, head_dim)
        # Queries and keys lie side by side, so one rotation serves both.
        to_rotate = qkv[:, : self._rotated_heads]
        rotated = rotate(self._normed(to_rotate) if self._has_head_norms else to_rotate, *tables)
        query, key = rotated[:, : self._query_heads], rotated[:, self._query_heads :]
        attended = attend(self._spec, query, key, qkv[:, self._rotated_heads :], batch)
        output: torch.Tensor = self.o_proj(attended)
        return output

    def _normed(self, heads: torch.Tensor) -> torch.Tensor:
        """Query and key heads (tokens, q heads + k heads, head_dim), normalised each by itself."""
        queries, keys = heads[:, : self._query_heads], heads[:, self._query_heads :]
        return torch.cat((self.q_norm(queries), self.k_norm(keys)), dim=1)


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each behind a norm and added to the residual."""

    def __init__(self, config: DecoderConfig, layer: int, dtype: torch.dtype):
        super().__init__()
        experts = config.layers[layer].experts
        self.self_attn = Attention(config, layer, dtype)
        self.mlp = MLP(config, dtype) if experts is None else SparseMLP(config, experts, dtype)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)

    def forward(self, hidden: torch.Tensor, tables: _Tables, batch: _Batch) -> torch.Tensor:
        """(tokens, hidden) -> (tokens, hidden)."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), tables, batch)
        output: torch.Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return output


class Trunk(nn.Module):
    """Embedding, layers and the last norm: what checkpoints call `model`."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype):
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, dtype=dtype)
        self.layers = nn.ModuleList(DecoderLayer(config, layer, dtype) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)


class Decoder(nn.Module):
    """A causal language model over flattened sequences.

    Args:
        config: The family's shapes and mathematics.
        dtype: Of the weights, of the activations and of the KV cache.
        device: Where it computes; the parameters are on the meta device all the same.
        max_model_len_tokens: The longest sequence that will be served.
    """

    may_be_captured: bool = True

    def __init__(self, config: DecoderConfig, dtype: torch.dtype, device: torch.device, max_model_len_tokens: int):
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.device = device
        self.model = Trunk(config, dtype)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False, dtype=dtype)
        self._rotary = RotaryEmbedding(config.rope, device, max_model_len_tokens)
        self.requires_grad_(requires_grad=False)

    def forward(self, token_ids: torch.Tensor, positions: torch.Tensor, batch: _Batch) -> torch.Tensor:
        """Hidden states (tokens, hidden) after the last norm, for token_ids (tokens,) at positions (tokens,).

        Writes the keys and values of every token into the batch's KV cache.
        """
        tables = self._rotary.tables(positions, self.dtype)
        hidden = self.model.embed_tokens(token_ids)
        for layer in self.model.layers:
            hidden = layer(hidden, tables, batch)
        output: torch.Tensor = self.model.norm(hidden)
        return output

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(rows, hidden) -> (rows, vocabulary), in the weights' dtype."""
        head = self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        return product(hidden, head.weight)
