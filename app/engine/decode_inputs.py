"""What a decode step reads, at addresses that never change: a token, a position, a slot and a block table per row.

Takes spans, writes them to the GPU in two copies at most. Knows no graph and no model.
"""

from __future__ import annotations

import torch

from app.engine.kv_cache import KVCache
from app.engine.scheduler import Span

_PADDING_POSITION = -1  # so that its context has no token


class DecodeInputs:
    """Static tensors for up to so many rows.

    Args:
        cache: Says where tokens lie.
        rows: The most sequences of a step.
        blocks: The most blocks of a sequence.
    """

    def __init__(self, cache: KVCache, rows: int, blocks: int):
        self._cache = cache
        self.token_ids, self.positions, self.slots = self._numbers = torch.zeros(
            3, rows, dtype=torch.long, device=cache.device
        )
        self.block_tables = torch.zeros(rows, blocks, dtype=torch.int32, device=cache.device)
        pinned = cache.device.type == "cuda"
        self._host_numbers = torch.zeros(3, rows, dtype=torch.long, pin_memory=pinned)
        self._host_tables = torch.zeros(rows, blocks, dtype=torch.int32, pin_memory=pinned)
        # What each row's table says already: a list of blocks that only grows, and how much of it was written.
        self._written: list[tuple[list[int] | None, int]] = [(None, 0)] * rows

    def write(self, spans: list[Span], rows: int) -> None:
        """Spans of one token each, padded to `rows`; the copies are queued when this returns.

        The step before must have ended: its copies read the same host memory.
        """
        cache = self._cache
        padding = rows - len(spans)
        numbers = (
            [span.sequence.token_ids[span.start] for span in spans] + [0] * padding,
            [span.start for span in spans] + [_PADDING_POSITION] * padding,
            [cache.slot(span.sequence.block_ids, span.start) for span in spans] + [cache.scratch_slot] * padding,
        )
        self._host_numbers[:, :rows] = torch.tensor(numbers)
        self._numbers.copy_(self._host_numbers, non_blocking=True)
        changed = [row for row, span in enumerate(spans) if self._write_table(row, span.sequence.block_ids)]
        if changed:
            rows_changed = slice(changed[0], changed[-1] + 1)
            self.block_tables[rows_changed].copy_(self._host_tables[rows_changed], non_blocking=True)

    def _write_table(self, row: int, block_ids: list[int]) -> bool:
        """Bring a row's table up to date; whether there was anything to do."""
        known, count = self._written[row]
        # A sequence that was preempted has another list, and so has another sequence.
        if known is not block_ids or count > len(block_ids):
            count = 0
        if count == len(block_ids):
            return False
        self._host_tables[row, count : len(block_ids)] = torch.tensor(block_ids[count:], dtype=torch.int32)
        self._written[row] = block_ids, len(block_ids)
        return True
