"""The decoder of every family that is served, on the meta device until the skeleton binds it.

Takes the flattened tokens of a step (sequences of any lengths, one after the other) and gives hidden
states. What differs between families is in `DecoderConfig`. Parameter names are the checkpoints', except for what
the arena lays side by side: `qkv_proj` is q, k, v and `gate_up_proj` is gate, up. Knows neither where the weights
live nor how the KV cache is laid out.
"""

from __future__ import annotations

import torch
from torch import nn

from app.engine.attention import AttentionBatch, AttentionSpec
from app.engine.models.linear import Embedding, Linear, product
from app.engine.models.mlp import MLP
from app.engine.models.moe import SparseMLP, max_captured_tokens
from app.engine.models.norm import RMSNorm
from app.engine.models.rope import RotaryEmbedding
from app.families.decoder_config import DecoderConfig

_Tables = tuple[torch.Tensor, torch.Tensor]


class Attention(nn.Module):
    """Projections around what the step's batch computes: norms of the heads, rotary embedding, attention."""

    def __init__(self, config: DecoderConfig, layer: int, dtype: torch.dtype):
        super().__init__()
        heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self._spec = AttentionSpec(layer, config.layers[layer].sliding_window)
        self._heads_shape = (-1, heads + 2 * kv_heads, head_dim)
        qkv_size = (heads + 2 * kv_heads) * head_dim
        self.qkv_proj = Linear(config.hidden_size, qkv_size, bias=config.qkv_bias, dtype=dtype)
        self.o_proj = Linear(heads * head_dim, config.hidden_size, bias=config.output_bias, dtype=dtype)
        self._has_head_norms = config.head_norms
        self._eps = config.rms_norm_eps
        if config.head_norms:
            self.q_norm = RMSNorm(head_dim, config.rms_norm_eps, dtype)
            self.k_norm = RMSNorm(head_dim, config.rms_norm_eps, dtype)

    def forward(self, hidden: torch.Tensor, tables: _Tables, batch: AttentionBatch) -> torch.Tensor:
        """(tokens, hidden) -> (tokens, hidden)."""
        qkv = self.qkv_proj(hidden).view(self._heads_shape)  # (tokens, q heads + k heads + v heads, head_dim)
        keys, values = batch.cache.layers[self._spec.layer]
        norms = (self.q_norm.weight, self.k_norm.weight) if self._has_head_norms else None
        query = batch.ops.rotate_and_store(qkv, *tables, batch.slots, keys, values, norms, self._eps)
        output: torch.Tensor = self.o_proj(batch.attend(self._spec, query))
        return output


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each behind a norm and added to the residual."""

    def __init__(self, config: DecoderConfig, layer: int, dtype: torch.dtype):
        super().__init__()
        experts = config.layers[layer].experts
        self.self_attn = Attention(config, layer, dtype)
        self.mlp = MLP(config, dtype) if experts is None else SparseMLP(config, experts, dtype)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)

    def forward(
        self, hidden: torch.Tensor, update: torch.Tensor | None, tables: _Tables, batch: AttentionBatch
    ) -> torch.Tensor:
        """What is to be added to the residual stream `hidden` (tokens, hidden), to which `update` is added first."""
        attended = self.self_attn(self.input_layernorm(hidden, update, batch.ops), tables, batch)
        output: torch.Tensor = self.mlp(self.post_attention_layernorm(hidden, attended, batch.ops), batch.ops)
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

    def __init__(self, config: DecoderConfig, dtype: torch.dtype, device: torch.device, max_model_len_tokens: int):
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.device = device
        self.max_captured_tokens = _max_captured_tokens(config, dtype, device)
        self.model = Trunk(config, dtype)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False, dtype=dtype)
        self._rotary = RotaryEmbedding(config.rope, device, max_model_len_tokens)
        self.requires_grad_(requires_grad=False)

    def forward(self, token_ids: torch.Tensor, positions: torch.Tensor, batch: AttentionBatch) -> torch.Tensor:
        """Hidden states (tokens, hidden) after the last norm, for token_ids (tokens,) at positions (tokens,).

        Writes the keys and values of every token into the batch's KV cache.
        """
        tables = self._rotary.tables(positions, self.dtype)
        hidden = self.model.embed_tokens(token_ids)
        # Every norm adds what came before it: one pass over the residual stream instead of two.
        update: torch.Tensor | None = None
        for layer in self.model.layers:
            update = layer(hidden, update, tables, batch)
        output: torch.Tensor = self.model.norm(hidden, update, batch.ops)
        return output

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(rows, hidden) -> (rows, vocabulary), in the weights' dtype."""
        head = self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        return product(hidden, head.weight)


def _max_captured_tokens(config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> int | None:
    experts = {layer.experts for layer in config.layers if layer.experts is not None}
    limits = [max_captured_tokens(each, config.hidden_size, dtype, device) for each in experts]
    return min((limit for limit in limits if limit is not None), default=None)
