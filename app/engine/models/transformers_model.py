"""A causal language model of transformers, driven like our own decoder.

Takes the flattened tokens of a step and gives hidden states; the class' own forward makes logits of them, so that
whatever it does after its trunk (caps, scales) is done. Knows neither where the weights live nor how the KV cache is
laid out: attention goes through `app.engine.transformers_attention`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from app.engine.attention import AttentionBatch
from app.engine.transformers_attention import Recorder, attending


@dataclass(frozen=True)
class TransformersShape:
    """The sizes of a model, as `app.engine.models.shape.ModelShape` has them."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int

    @property
    def kv_elements_per_token(self) -> int:
        """Elements of one token's keys and values in all layers together."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim


class _Output(BaseModelOutputWithPast):
    """A trunk's output of any kind: what there is beside hidden states is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _Computed(nn.Module):
    """Stands in for the trunk where its hidden states are known: it gives back what it is given."""

    def forward(self, *_: Any, inputs_embeds: torch.Tensor | None = None, **__: Any) -> BaseModelOutputWithPast:
        return _Output(last_hidden_state=inputs_embeds)


class Halves:
    """A class' trunk and what it does after it.

    Args:
        causal: The whole model; its parameters may be replaced later.
    """

    def __init__(self, causal: PreTrainedModel):
        self._trunk = causal.base_model
        # The same modules but for the trunk, so that binding the whole model binds this one.
        self._head = copy.copy(causal)
        self._head._modules = {**causal._modules, causal.base_model_prefix: _Computed()}  # noqa: SLF001

    def hidden(
        self, token_ids: torch.Tensor, positions: torch.Tensor, batch: AttentionBatch | Recorder
    ) -> torch.Tensor:
        """(tokens,), (tokens,) -> (tokens, hidden)."""
        with attending(batch):
            output = self._trunk(input_ids=token_ids[None], position_ids=positions[None], use_cache=False)
        hidden: torch.Tensor = output[0][0]
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(rows, hidden) -> (rows, vocabulary)."""
        logits: torch.Tensor = self._head(inputs_embeds=hidden[None], use_cache=False).logits[0]
        return logits


class TransformersModel:
    """A causal language model over flattened sequences.

    Args:
        causal: transformers' class, whose config names our attention.
        shape: Its sizes.
        dtype: Of the weights, of the activations and of the KV cache.
        device: Where it computes; its buffers are there, too.
    """

    # Its code may ask the GPU for values, which a capture cannot answer.
    max_captured_tokens: int | None = 0

    def __init__(self, causal: PreTrainedModel, shape: TransformersShape, dtype: torch.dtype, device: torch.device):
        self.config = shape
        self.dtype = dtype
        self.device = device
        self.causal = causal
        self._halves = Halves(causal)

    def __call__(self, token_ids: torch.Tensor, positions: torch.Tensor, batch: AttentionBatch) -> torch.Tensor:
        """Hidden states (tokens, hidden) for token_ids (tokens,) at positions (tokens,).

        Writes the keys and values of every token into the batch's KV cache.
        """
        # Rows that only pad a step have no position, but a table of learned positions must be asked for one.
        return self._halves.hidden(token_ids, positions.clamp(min=0), batch)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(rows, hidden) -> (rows, vocabulary)."""
        return self._halves.logits(hidden)
