"""What a step on the GPU reads, at addresses that never change, so that CUDA graphs can be replayed on it.

Takes spans, writes them with a few small copies that nobody waits for. Knows no graph and no model.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from itertools import accumulate

import torch

from app.engine.flat_step import FlatStep, flatten
from app.engine.kv_cache import KVCache
from app.engine.last_draw import LastDraw, filled
from app.engine.sampling.device import upload
from app.engine.scheduler import Span

_PADDING_POSITION = -1  # so that its context has no token


class StepInputs:
    """Static tensors for steps of up to so many tokens and sequences.

    The row `i` of `block_tables` (sequences + 1, blocks) is the span `i`'s. What only steps of several tokens per
    sequence have: `lengths` (sequences + 1,) of contexts, `query_starts` (sequences + 2,), `last_rows` (sequences,),
    where the span that samples as the `i`-th has its last token, and `tiles` (tiles, 2) for
    `app.engine.kernels.attention.prefill_attention`. The last sequence is nobody's: padding tiles are its.

    What belongs to sequences is int32.

    Args:
        cache: Says where tokens lie.
        last_draw: Says where tokens are that the host does not know yet.
        max_tokens: Of a step.
        max_sequences: Of a step.
        max_blocks: Of a sequence.
        queries_per_tile: Tokens of one sequence that a tile takes.
    """

    def __init__(
        self,
        cache: KVCache,
        last_draw: LastDraw,
        *,
        max_tokens: int,
        max_sequences: int,
        max_blocks: int,
        queries_per_tile: int,
    ):
        self._cache = cache
        self._last_draw = last_draw
        self._max_sequences = max_sequences
        self.queries_per_tile = queries_per_tile
        self._tokens = torch.zeros(4 * max_tokens, dtype=torch.long, device=cache.device)
        self.block_tables = torch.zeros(max_sequences + 1, max_blocks, dtype=torch.int32, device=cache.device)
        self._max_tiles = self.tiles_of(max_tokens)
        sizes = [max_sequences + 1, max_sequences + 2, max_sequences, 2 * self._max_tiles]
        self._sequences = torch.zeros(sum(sizes), dtype=torch.int32, device=cache.device)
        self.lengths, self.query_starts, self.last_rows, tiles = torch.split(self._sequences, sizes)
        self.tiles = tiles.view(-1, 2)
        # What each row's table says already: a list of blocks that only grows, and how much of it was written.
        self._written: list[tuple[list[int] | None, int]] = [(None, 0)] * max_sequences

    def tokens(self, padded: int) -> tuple[torch.Tensor, ...]:
        """Token ids, positions and slots of a step that is padded to so many tokens, each (padded,) int64."""
        token_ids, positions, slots, sources = self._tokens[: 4 * padded].view(4, padded).unbind()
        return filled(token_ids, sources, self._last_draw.token_ids), positions, slots

    def tiles_of(self, tokens: int) -> int:
        """How many tiles a step of so many tokens needs at most."""
        return tokens // self.queries_per_tile + min(tokens, self._max_sequences)

    def write_decode(self, spans: Seq[Span], rows: int) -> None:
        """Spans of one token each, padded to `rows`."""
        self._write_tokens(flatten(spans, self._cache, self._last_draw), rows)
        self._write_tables(spans)

    def write_mixed(self, spans: Seq[Span], tokens: int) -> None:
        """Spans of any lengths, padded to `tokens`."""
        flat = flatten(spans, self._cache, self._last_draw)
        self._write_tokens(flat, tokens)
        self._write_tables(spans)
        queries = [span.end - span.start for span in spans]
        tiles = [
            number
            for row, count in enumerate(queries)
            for first in range(0, count, self.queries_per_tile)
            for number in (row, first)
        ]
        nobody = self._max_sequences
        self._upload(
            self._sequences,
            _padded([span.end for span in spans], self._max_sequences + 1, 0)
            + _padded(list(accumulate(queries, initial=0)), self._max_sequences + 2, sum(queries))
            + _padded(flat.last_rows, self._max_sequences, 0)
            + tiles
            + [nobody, 0] * (self._max_tiles - len(tiles) // 2),
        )

    def _write_tokens(self, flat: FlatStep, padded: int) -> None:
        numbers = (
            _padded(flat.token_ids, padded, 0)
            + _padded(flat.positions, padded, _PADDING_POSITION)
            + _padded(flat.slots, padded, self._cache.scratch_slot)
            + _padded(flat.sources, padded, 0)
        )
        self._upload(self._tokens[: 4 * padded], numbers)

    def _write_tables(self, spans: Seq[Span]) -> None:
        """Bring the rows' tables up to date; where nothing has changed there is nothing to do."""
        width = self.block_tables.shape[1]
        places: list[int] = []
        blocks: list[int] = []
        for row, span in enumerate(spans):
            block_ids = span.sequence.block_ids
            known = self._known(row, block_ids)
            if known < len(block_ids):
                places += range(row * width + known, row * width + len(block_ids))
                blocks += block_ids[known:]
                # Written before it is uploaded: where that fails, so does the step, and no sequence keeps this list.
                self._written[row] = block_ids, len(block_ids)
        if places:
            changes = upload([places, blocks], torch.long, self._cache.device)
            self.block_tables.view(-1).index_copy_(0, changes[0], changes[1].int())

    def _known(self, row: int, block_ids: list[int]) -> int:
        """How many of the blocks the row's table has already."""
        known, count = self._written[row]
        # A sequence that was preempted has another list, and so has another sequence.
        return count if known is block_ids and count <= len(block_ids) else 0

    def _upload(self, target: torch.Tensor, values: list[int]) -> None:
        # Pinned memory of its own for each copy: torch reuses it only once the copy has been made.
        host = torch.tensor(values, dtype=target.dtype, pin_memory=target.is_cuda)
        target.copy_(host, non_blocking=True)


def _padded(values: list[int], length: int, padding: int) -> list[int]:
    return values + [padding] * (length - len(values))
