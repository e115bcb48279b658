"""A step's spans as the tensors that the model takes.

Takes what the scheduler chose, gives flattened token ids, positions and slots. Knows no weight.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch

from app.engine.kv_cache import KVCache
from app.engine.scheduler import Span
from app.engine.sdpa_attention import SDPABatch, SequenceAttention


@dataclass(frozen=True)
class Batch:
    """One step's input: token_ids and positions are (tokens,); `last_rows` are the rows that sample."""

    token_ids: torch.Tensor
    positions: torch.Tensor
    last_rows: list[int]
    attention: SDPABatch


def build_batch(spans: Seq[Span], cache: KVCache) -> Batch:
    """Flatten `spans`, one after the other."""
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    last_rows: list[int] = []
    sequences: list[SequenceAttention] = []
    for span in spans:
        first_row = len(token_ids)
        token_ids += span.sequence.token_ids[span.start : span.end]
        positions += range(span.start, span.end)
        slots += cache.slots(span.sequence.block_ids, span.start, span.end)
        sequences.append(_sequence_attention(span, first_row, cache))
        if span.samples:
            last_rows.append(len(token_ids) - 1)
    return Batch(
        torch.tensor(token_ids, device=cache.device),
        torch.tensor(positions, device=cache.device),
        last_rows,
        SDPABatch(cache, torch.tensor(slots, device=cache.device), sequences),
    )


def _sequence_attention(span: Span, first_row: int, cache: KVCache) -> SequenceAttention:
    queries = span.end - span.start
    mask = None
    if span.start > 0 and queries > 1:
        mask = torch.ones(queries, span.end, dtype=torch.bool, device=cache.device).tril(diagonal=span.start)
    context = _context(span.sequence.block_ids, span.end, cache)
    return SequenceAttention(first_row, first_row + queries, context, mask)


def _context(block_ids: list[int], tokens: int, cache: KVCache) -> slice | torch.Tensor:
    """Where the first `tokens` tokens of a sequence lie: a slice if its blocks are in a row."""
    size = cache.block_size_tokens
    blocks = block_ids[: -(-tokens // size)]
    first = blocks[0]
    if blocks == list(range(first, first + len(blocks))):
        return slice(first * size, first * size + tokens)
    offsets = torch.arange(size, device=cache.device)
    return (torch.tensor(blocks, device=cache.device)[:, None] * size + offsets).flatten()[:tokens]
