"""A step's spans as the tensors that the model takes.

Takes what the scheduler chose, gives flattened token ids, positions and slots. Knows no weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from app.engine.attention import AttentionBatch, SequenceAttention
from app.engine.kv_cache import KVCache
from app.engine.scheduler import Span


@dataclass(frozen=True)
class Batch:
    """One step's input: token_ids and positions are (tokens,); `last_rows` are the rows that sample."""

    token_ids: torch.Tensor
    positions: torch.Tensor
    last_rows: list[int]
    attention: AttentionBatch


def build_batch(spans: list[Span], cache: KVCache, block_size_tokens: int) -> Batch:
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
        slots += _slots(span, block_size_tokens)
        sequences.append(_sequence_attention(span, first_row, block_size_tokens))
        if span.samples:
            last_rows.append(len(token_ids) - 1)
    return Batch(
        torch.tensor(token_ids),
        torch.tensor(positions),
        last_rows,
        AttentionBatch(cache, torch.tensor(slots), sequences),
    )


def _slots(span: Span, block_size_tokens: int) -> list[int]:
    blocks = span.sequence.block_ids
    return [
        blocks[position // block_size_tokens] * block_size_tokens + position % block_size_tokens
        for position in range(span.start, span.end)
    ]


def _sequence_attention(span: Span, first_row: int, block_size_tokens: int) -> SequenceAttention:
    queries = span.end - span.start
    mask = None
    if span.start > 0 and queries > 1:
        mask = torch.ones(queries, span.end, dtype=torch.bool).tril(diagonal=span.start)
    context = _context(span.sequence.block_ids, span.end, block_size_tokens)
    return SequenceAttention(first_row, first_row + queries, context, mask)


def _context(block_ids: list[int], tokens: int, block_size_tokens: int) -> slice | torch.Tensor:
    """Where the first `tokens` tokens of a sequence lie: a slice if its blocks are in a row."""
    blocks = block_ids[: -(-tokens // block_size_tokens)]
    first = blocks[0]
    if blocks == list(range(first, first + len(blocks))):
        return slice(first * block_size_tokens, first * block_size_tokens + tokens)
    offsets = torch.arange(block_size_tokens)
    return (torch.tensor(blocks)[:, None] * block_size_tokens + offsets).flatten()[:tokens]
