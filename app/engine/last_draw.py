"""The tokens that the last launch drew, still on the device, for the step that goes on from them.

A step's token ids have `UNKNOWN_TOKEN` where the host does not know one yet; `filled` puts the drawn ones there, with
operations whose shapes depend on the number of tokens only. Knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch

from app.engine.scheduler import Span
from app.engine.sequence import UNKNOWN_TOKEN, Sequence


class LastDraw:
    """Whose token is where.

    Args:
        rows: The most sequences of a step.
        device: The model's.
    """

    def __init__(self, rows: int, device: torch.device):
        self.token_ids = torch.zeros(rows, dtype=torch.long, device=device)  # (rows,), always at this address
        self._rows: dict[Sequence, int] = {}

    def keep(self, sequences: list[Sequence], token_ids: torch.Tensor) -> None:
        """Remember the token ids (sequences,) of a launch, all of them in the vocabulary; the copy is queued."""
        self._rows = {sequence: row for row, sequence in enumerate(sequences)}
        self.token_ids[: len(sequences)].copy_(token_ids)

    def sources(self, spans: Seq[Span]) -> list[int]:
        """For each token of a step, the row of `token_ids` that it is if it is unknown; 0 for the others.

        Raises:
            KeyError: The last launch drew none for a sequence whose last token is unknown.
        """
        sources: list[int] = []
        for span in spans:
            sources += [0] * (span.end - span.start)
            if span.sequence.token_ids[span.end - 1] == UNKNOWN_TOKEN:  # no other token can be unknown
                sources[-1] = self._rows[span.sequence]
        return sources


def filled(token_ids: torch.Tensor, sources: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """Token ids (tokens,) where each unknown one is that of row `sources` (tokens,) of `drawn`; sources are 0 elsewhere."""
    return torch.where(token_ids == UNKNOWN_TOKEN, drawn.index_select(0, sources), token_ids)
