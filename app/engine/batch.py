"""A step's spans as the tensors that the model takes.

Takes what the scheduler chose, gives flattened token ids, positions and slots. Knows no weight.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch

from app.engine.flat_step import flatten
from app.engine.kv_cache import KVCache
from app.engine.last_draw import LastDraw, filled
from app.engine.sampling.device import upload
from app.engine.scheduler import Span
from app.engine.sdpa_attention import SDPABatch, SequenceAttention
from app.engine.sequence import UNKNOWN_TOKEN


@dataclass(frozen=True)
class Batch:
    """One step's input: token_ids and positions are (tokens,); `last_rows` (rows,) are those that sample."""

    token_ids: torch.Tensor
    positions: torch.Tensor
    last_rows: torch.Tensor
    attention: SDPABatch


def build_batch(spans: Seq[Span], cache: KVCache, last_draw: LastDraw) -> Batch:
    """Flatten `spans`, one after the other; the host waits for nothing.

    A token that is unknown is taken from `last_draw`.
    """
    flat = flatten(spans, cache, last_draw)
    sequences: list[SequenceAttention] = []
    first_row = 0
    for span in spans:
        sequences.append(_sequence_attention(span, first_row, cache))
        first_row += span.end - span.start
    numbers = upload([flat.token_ids, flat.positions, flat.slots, flat.sources], torch.long, cache.device)
    token_ids, positions, slots, sources = numbers.unbind()
    if UNKNOWN_TOKEN in flat.token_ids:
        token_ids = filled(token_ids, sources, last_draw.token_ids)
    last_rows = upload(flat.last_rows, torch.long, cache.device)
    return Batch(token_ids, positions, last_rows, SDPABatch(cache, slots, sequences))


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
    return (upload(blocks, torch.long, cache.device)[:, None] * size + offsets).flatten()[:tokens]
