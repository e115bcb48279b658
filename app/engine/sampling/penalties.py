"""Repetition, presence and frequency penalties, from counts that stay on the device.

A sequence's counts are made once from its tokens, then grow by each token that is drawn, before the host knows it.
Whatever else happened to it meanwhile (steps in other batches, a step that failed), the host sees by the number of its
tokens that they are not up to date, and they are made again.
"""

from __future__ import annotations

import torch

from app.engine.sampling.device import Rows, column, upload
from app.engine.sequence import UNKNOWN_TOKEN, Sequence
from app.messages import SamplingParams


class Penalties:
    """The penalties of one batch.

    Args:
        sequences: One per row; at least one `is_penalised`.
        vocab_size: Of the logits.
        device: Of the logits.
        previous: The batch before, whose counts are taken over.
    """

    def __init__(self, sequences: list[Sequence], vocab_size: int, device: torch.device, previous: Penalties | None):
        rows = [row for row, sequence in enumerate(sequences) if is_penalised(sequence.sampling)]
        self._rows = Rows(rows, len(sequences), device)
        self._sequences = [sequences[row] for row in rows]
        samplings = [sequence.sampling for sequence in self._sequences]
        self._repetition = column([sampling.repetition_penalty for sampling in samplings], torch.float32, device)
        self._presence = column([sampling.presence_penalty for sampling in samplings], torch.float32, device)
        self._frequency = column([sampling.frequency_penalty for sampling in samplings], torch.float32, device)
        self._generated = torch.zeros(len(rows), vocab_size, dtype=torch.int32, device=device)
        self._seen = torch.zeros(len(rows), vocab_size, dtype=torch.bool, device=device)
        self._covered_tokens = [0] * len(rows)
        if previous is not None:
            self._take_over(previous)

    def apply(self, values: torch.Tensor) -> torch.Tensor:
        """Float32 logits (rows, vocabulary), penalised."""
        for row, sequence in enumerate(self._sequences):
            if self._covered_tokens[row] != len(sequence.token_ids):
                self._recount(row, sequence)
        picked = self._rows.of(values)
        repetition = torch.where(self._seen, self._repetition, 1.0)
        penalised = torch.where(picked > 0, picked / repetition, picked * repetition)
        penalised -= self._generated * self._frequency
        penalised -= (self._generated > 0) * self._presence
        return self._rows.put(values, penalised)

    def count(self, drawn: torch.Tensor) -> None:
        """Add the drawn token ids (batch rows,), on the device: each sequence's next token."""
        token_ids = self._rows.of(drawn)[:, None]
        self._generated.scatter_add_(1, token_ids, torch.ones_like(token_ids, dtype=torch.int32))
        self._seen.scatter_(1, token_ids, True)
        self._covered_tokens = [len(sequence.token_ids) + 1 for sequence in self._sequences]

    def _take_over(self, previous: Penalties) -> None:
        old_rows = {sequence: row for row, sequence in enumerate(previous._sequences)}
        kept = [row for row, sequence in enumerate(self._sequences) if sequence in old_rows]
        if not kept:
            return
        device = self._seen.device
        ours = upload(kept, torch.long, device)
        theirs = upload([old_rows[self._sequences[row]] for row in kept], torch.long, device)
        self._generated.index_copy_(0, ours, previous._generated.index_select(0, theirs))
        self._seen.index_copy_(0, ours, previous._seen.index_select(0, theirs))
        for row in kept:
            self._covered_tokens[row] = previous._covered_tokens[old_rows[self._sequences[row]]]

    def _recount(self, row: int, sequence: Sequence) -> None:
        if sequence.token_ids[-1] == UNKNOWN_TOKEN:  # who draws a token counts it: it is in the batch before
            raise RuntimeError(f"{sequence.request_id}: a token is to be counted that is not known yet")
        token_ids = upload(sequence.token_ids, torch.long, self._seen.device)
        generated = token_ids[sequence.prompt_tokens :]
        self._seen[row].zero_().index_fill_(0, token_ids, True)
        self._generated[row].zero_().index_add_(0, generated, torch.ones_like(generated, dtype=torch.int32))
        self._covered_tokens[row] = len(sequence.token_ids)


def is_penalised(sampling: SamplingParams) -> bool:
    """Whether tokens that were there before count."""
    return bool(sampling.presence_penalty or sampling.frequency_penalty or sampling.repetition_penalty != 1)
