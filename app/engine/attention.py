"""Attention over the paged KV cache, one function per phase.

Takes the queries, keys and values of a step's flattened tokens, gives what each token attends to; what differs
between layers is in `AttentionSpec`. In a mixed step (`AttentionBatch`) every sequence reads exactly its own
slots: a slice of the cache where its blocks lie in a row (a view, no copy), a gather where they do not. A decode
step of fixed shapes (`DecodeAttention`) gathers whole block tables. Knows neither projections nor scheduling.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace

import torch
from torch.nn.functional import scaled_dot_product_attention

from app.engine.kv_cache import KVCache


@dataclass(frozen=True)
class AttentionSpec:
    """One layer's attention.

    A token sees itself and the `sliding_window - 1` tokens before it, or everything before it with None. Scores are
    multiplied by `scale`, 1 / sqrt(head_dim) with None; with `softcap` they become softcap * tanh(score / softcap).
    """

    layer: int
    sliding_window: int | None = None
    scale: float | None = None
    softcap: float | None = None


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
class AttentionBatch:
    """The cache, the slot of each of the step's tokens, and each sequence's context."""

    cache: KVCache
    slots: torch.Tensor  # (tokens,)
    sequences: Seq[SequenceAttention]
    _windows: dict[int, AttentionBatch] = field(default_factory=dict, repr=False)

    def within(self, window: int) -> AttentionBatch:
        """The same for layers whose tokens see `window` tokens at most; made once a step."""
        if window not in self._windows:
            sequences = [sequence.within(window, self.slots.device) for sequence in self.sequences]
            self._windows[window] = replace(self, sequences=sequences, _windows={})
        return self._windows[window]


@dataclass(frozen=True)
class DecodeAttention:
    """One token of each sequence, with shapes that do not depend on the contexts: what a CUDA graph needs.

    What lies beyond a sequence's context is read from a slot that is always zero: another sequence's NaN
    would pass through a mask.
    """

    cache: KVCache
    slots: torch.Tensor  # (rows,)
    positions: torch.Tensor  # (rows,)
    context: torch.Tensor  # (rows, tokens) of slots
    mask: torch.Tensor  # (rows, 1, 1, tokens), True where a query may look
    _windows: dict[int, DecodeAttention] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls, cache: KVCache, slots: torch.Tensor, block_tables: torch.Tensor, positions: torch.Tensor
    ) -> DecodeAttention:
        """From block tables (rows, blocks) and the position of each row's token (rows,)."""
        size = cache.block_size_tokens
        offsets = torch.arange(size, device=slots.device)
        context = (block_tables[:, :, None] * size + offsets).flatten(1)
        places = torch.arange(context.shape[1], device=slots.device)
        visible = places <= positions[:, None]
        # The row's own token lies at its own slot, also where a padding row's table says otherwise.
        context = torch.where(places == positions[:, None], slots[:, None], context)
        context = torch.where(visible, context, cache.null_slot)
        return cls(cache, slots, positions, context, visible[:, None, None])

    def within(self, window: int) -> DecodeAttention:
        """The same for layers whose tokens see `window` tokens at most; made once a step."""
        if window >= self.context.shape[1]:
            return self
        if window not in self._windows:
            first = (self.positions - window + 1).clamp(min=0)
            places = first[:, None] + torch.arange(window, device=self.slots.device)
            mask = self.mask[:, 0, 0].gather(1, places)[:, None, None]
            context = self.context.gather(1, places)
            self._windows[window] = replace(self, context=context, mask=mask, _windows={})
        return self._windows[window]


def attend(
    spec: AttentionSpec,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    batch: AttentionBatch | DecodeAttention,
) -> torch.Tensor:
    """Store keys and values (tokens, kv_heads, head_dim), then attend with query (tokens, heads, head_dim).

    Returns:
        (tokens, heads * head_dim).
    """
    keys, values = batch.cache.layers[spec.layer]
    keys.index_copy_(0, batch.slots, key)
    values.index_copy_(0, batch.slots, value)
    if spec.sliding_window is not None:
        batch = batch.within(spec.sliding_window)
    if isinstance(batch, DecodeAttention):
        return _decode_rows(spec, query, keys[batch.context], values[batch.context], batch.mask)
    parts = [_attend_one(spec, query, keys, values, sequence) for sequence in batch.sequences]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


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
    return scaled_dot_product_attention(grouped, key, value, scale=spec.scale).view(1, -1)


def _decode_rows(
    spec: AttentionSpec, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Queries (rows, heads, head_dim), each over its own keys (rows, tokens, kv_heads, head_dim)."""
    rows, heads, head_dim = query.shape
    grouped = query.view(rows, keys.shape[2], -1, head_dim)
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    if spec.softcap is not None:
        attended = _softcapped(spec, grouped, keys, values, mask)
    else:
        attended = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=spec.scale)
    return attended.reshape(rows, heads * head_dim)


def _prefill(
    spec: AttentionSpec, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Queries (tokens, heads, head_dim) see what came before them and themselves."""
    if spec.softcap is not None:
        return _softcapped_prefill(spec, query, key, value, mask)
    attended = scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=spec.scale,
        enable_gqa=True,
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
    scale = query.shape[-1] ** -0.5 if spec.scale is None else spec.scale
    scores = torch.matmul(query, key.transpose(-2, -1)) * scale
    scores = torch.tanh(scores / spec.softcap) * spec.softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return torch.matmul(scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype), value)
