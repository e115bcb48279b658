"""transformers' attention layers on our paged KV cache.

Registers one attention function under `IMPLEMENTATION`; a model whose config names it calls that function in every
layer. The step's batch, or a recorder of the calls, is what `attending` has made current. Registers no mask, so that
transformers builds none. Knows no model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from app.engine.attention import AttentionBatch, AttentionSpec, store

IMPLEMENTATION = "coldstream"


@dataclass(frozen=True)
class Call:
    """One call of the attention function.

    Shapes are (1, heads, tokens, head_dim). `options` are the keywords that are not None.
    """

    module: nn.Module
    query: torch.Size
    key: torch.Size
    value: torch.Size
    masked: bool
    options: dict[str, Any]


@dataclass(frozen=True)
class Recorder:
    """In the place of a batch: every call is noted and nothing is computed."""

    calls: list[Call] = field(default_factory=list)


_current: ContextVar[AttentionBatch | Recorder] = ContextVar("attention batch")


@contextmanager
def attending(batch: AttentionBatch | Recorder) -> Iterator[None]:
    """What the layers that run within attend over."""
    token = _current.set(batch)
    try:
        yield
    finally:
        _current.reset(token)


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Heads (1, heads, tokens, head_dim) -> (1, tokens, heads, head_dim), as transformers has it."""
    batch = _current.get()
    if isinstance(batch, Recorder):
        given = {name: value for name, value in options.items() if value is not None}
        batch.calls.append(Call(module, query.shape, key.shape, value.shape, attention_mask is not None, given))
        return query.new_empty(1, query.shape[2], query.shape[1], value.shape[3]), None
    spec = AttentionSpec(
        layer=module.layer_idx,  # type: ignore[arg-type]  # a whole number: the description has checked it
        sliding_window=options.get("sliding_window"),
        scale=options.get("scaling"),
        softcap=options.get("softcap"),
    )
    heads, tokens, head_dim = query.shape[1:]
    query, key, value = (rows[0].transpose(0, 1) for rows in (query, key, value))
    store(batch, spec.layer, key, value)
    return batch.attend(spec, query.contiguous()).view(1, tokens, heads, head_dim), None


AttentionInterface.register(IMPLEMENTATION, _attention)
