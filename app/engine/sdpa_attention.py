"""Attention with torch's own scaled_dot_product_attention, sequence by sequence.

Every sequence reads exactly its own slots: a slice of the cache where its blocks lie in a row (a view, no copy), a
gather where they do not. For the CPU, and for a GPU until its kernels are compiled. Knows neither projections nor
scheduling.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace

import torch
from torch.nn.functional import scaled_dot_product_attention

from app.engine import row_ops
from app.engine.attention import AttentionSpec
from app.engine.kv_cache import KVCache


@dataclass(frozen=True)
class SequenceAttention:
    """One sequence's part in a step.

    Rows `[query_start, query_end)` of the flattened tokens attend to the cache's `context`, which ends
    with these very tokens. `mask` (queries, context) is True where a query may look; None means that
    plain causality does (the context is the queries) or that there is one query.
    """

    query_start: int
    query_end: int
    context: slice | torch.Tensor
    mask: torch.Tensor | None

    def within(self, window: int, device: torch.device) -> SequenceAttention:
        """The same where every query sees `window` tokens at most: a shorter context, a mask if there are queries."""
        queries = self.query_end - self.query_start
        context = self.context
        tokens = context.stop - context.start if isinstance(context, slice) else len(context)
        if tokens <= window:
            return self
        seen = min(tokens, queries + window - 1)
        tail = slice(context.stop - seen, context.stop) if isinstance(context, slice) else context[-seen:]
        if queries == 1:
            return replace(self, context=tail)
        mask = torch.ones(queries, seen, dtype=torch.bool, device=device)
        last = seen - queries  # the place of the first query's own token
        return replace(self, context=tail, mask=mask.tril(last).triu(last - window + 1))


@dataclass(frozen=True)
class SDPABatch:
    """A step as `app.engine.attention.AttentionBatch` has it: the slot of each token, and each sequence's context."""

    cache: KVCache
    slots: torch.Tensor  # (tokens,)
    sequences: Seq[SequenceAttention]
    _windows: dict[int, Seq[SequenceAttention]] = field(default_factory=dict, repr=False)

    ops = row_ops

    def attend(self, spec: AttentionSpec, query: torch.Tensor) -> torch.Tensor:
        """(tokens, heads, head_dim) -> (tokens, heads * head_dim)."""
        keys, values = self.cache.layers[spec.layer]
        sequences = self.sequences if spec.sliding_window is None else self._within(spec.sliding_window)
        parts = [_attend_one(spec, query, keys, values, sequence) for sequence in sequences]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _within(self, window: int) -> Seq[SequenceAttention]:
        """The sequences for layers whose tokens see `window` tokens at most; made once a step."""
        if window not in self._windows:
            self._windows[window] = [sequence.within(window, self.slots.device) for sequence in self.sequences]
        return self._windows[window]


def _attend_one(
    spec: AttentionSpec, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, sequence: SequenceAttention
) -> torch.Tensor:
    rows = query[sequence.query_start : sequence.query_end]
    key = keys[sequence.context].transpose(0, 1)[None]  # (1, kv_heads, context, head_dim)
    value = values[sequence.context].transpose(0, 1)[None]
    if len(rows) == 1:
        return _decode(spec, rows, key, value)
    return _prefill(spec, rows, key, value, sequence.mask)


def _decode(spec: AttentionSpec, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """One query (1, heads, head_dim) sees its whole context.

    The heads that share a key head are handed over as its queries, so that no key is repeated.
    """
    _, kv_heads, _, head_dim = key.shape
    grouped = query.view(1, kv_heads, -1, head_dim)
    if spec.softcap is not None:
        return _softcapped(spec, grouped, key, value, None).view(1, -1)
    return scaled_dot_product_attention(grouped, key, value, scale=spec.scale).reshape(1, -1)


def _prefill(
    spec: AttentionSpec, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Queries (tokens, heads, head_dim) see what came before them and themselves."""
    if spec.softcap is not None:
        return _softcapped_prefill(spec, query, key, value, mask)
    shares_keys = True
    if mask is not None and query.is_cuda:
        # With a mask, torch's fast ways take no shared key heads, and its slow one holds all scores at once.
        shares_keys = False
        group = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    attended = scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=spec.scale,
        enable_gqa=shares_keys,
    )  # (1, heads, tokens, head_dim)
    return attended[0].transpose(0, 1).flatten(1)


def _softcapped_prefill(
    spec: AttentionSpec, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """As `_prefill`; the heads that share a key head become its queries, each with the same mask."""
    tokens, heads, head_dim = query.shape
    kv_heads = key.shape[1]
    if mask is None:
        mask = torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).tril()
    grouped = query.view(tokens, kv_heads, -1, head_dim).permute(1, 2, 0, 3).flatten(1, 2)[None]
    attended = _softcapped(spec, grouped, key, value, mask.repeat(heads // kv_heads, 1))
    return attended[0].view(kv_heads, -1, tokens, head_dim).permute(2, 0, 1, 3).flatten(1)


def _softcapped(
    spec: AttentionSpec, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Attention of (batch, heads, queries, head_dim) with capped scores, which torch's own cannot give."""
    assert spec.softcap is not None  # it is asked for here alone
    scores = torch.matmul(query, key.transpose(-2, -1)) * spec.scale_of(query.shape[-1])
    scores = torch.tanh(scores / spec.softcap) * spec.softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return torch.matmul(scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype), value)
