"""What the model itself thought of a token: log_softmax of its raw logits in float32.

Before any constraint, penalty or temperature. Only rows that ask are scored, in the order of their logits, so
that a greedy token is its own first alternative.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from app.engine.sampling.device import Rows, upload
from app.engine.sampling.ranking import top_ranked
from app.engine.sequence import Sequence
from app.messages import TokenLogprobs

# A prompt's logits are made and dropped in pieces: whole, those of 2,048 tokens would take gigabytes.
_PIECE_ROWS = 64


class LogprobRows:
    """The rows of one batch that ask for logprobs.

    Args:
        sequences: One per row; at least one asks.
        device: Of the logits.
    """

    def __init__(self, sequences: list[Sequence], device: torch.device):
        asked = {row: sequence.sampling.logprobs for row, sequence in enumerate(sequences)}
        self._counts = {row: count for row, count in asked.items() if count is not None}
        self._rows = Rows(list(self._counts), len(sequences), device)
        self._longest = max(self._counts.values())

    def score(self, logits: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """Scores (asking rows, 2 + 2 alternatives) of token ids (rows,) under raw logits (rows, vocabulary)."""
        return _score(self._rows.of(logits), self._rows.of(drawn), self._longest)

    def read(self, scores: list[list[float]]) -> dict[int, TokenLogprobs]:
        """What `score` gave, fetched, by row."""
        return {
            row: _read(values, count, self._longest)
            for (row, count), values in zip(self._counts.items(), scores, strict=True)
        }


@dataclass(frozen=True)
class PromptScores:
    """Scores (tokens, 2 + 2 alternatives) of the next prompt tokens of a sequence that had none yet."""

    sequence: Sequence
    scores: torch.Tensor

    def keep(self, scores: list[list[float]]) -> None:
        """Add them, fetched, to what the sequence has."""
        count = self.sequence.sampling.prompt_logprobs or 0
        self.sequence.prompt_logprobs += [_read(values, count, count) for values in scores]


def score_prompt(
    sequence: Sequence, start: int, end: int, hidden: torch.Tensor, head: Callable[[torch.Tensor], torch.Tensor]
) -> PromptScores:
    """Score the prompt's tokens that the positions [start, end) predict and that were not scored before.

    Args:
        sequence: It `needs_prompt_logits`.
        start: The first position of the span.
        end: One past its last.
        hidden: The span's hidden states, (end - start, hidden).
        head: Makes logits (rows, vocabulary) of hidden states (rows, hidden).
    """
    first = len(sequence.prompt_logprobs)
    if start > first:
        raise RuntimeError(f"position {first} was skipped, but its prompt logprobs were asked for")
    last = min(end, sequence.prompt_tokens - 1)
    count = sequence.sampling.prompt_logprobs or 0
    pieces = []
    for at in range(first, last, _PIECE_ROWS):
        until = min(at + _PIECE_ROWS, last)
        token_ids = upload(sequence.token_ids[at + 1 : until + 1], torch.long, hidden.device)
        pieces.append(_score(head(hidden[at - start : until - start]), token_ids, count))
    return PromptScores(sequence, torch.cat(pieces) if pieces else hidden.new_empty(0, 2 + 2 * count))


def _score(logits: torch.Tensor, token_ids: torch.Tensor, count: int) -> torch.Tensor:
    """Of each row its token's logprob and rank, then the ids and the logprobs of `count` alternatives; float64."""
    values = logits.float()
    logprobs = values.log_softmax(dim=-1)
    own = token_ids[:, None]
    rank = (values > values.gather(1, own)).sum(dim=-1, keepdim=True) + 1
    parts = [logprobs.gather(1, own), rank]
    if count:
        top = top_ranked(values, count)
        parts += [top, logprobs.gather(1, top)]
    return torch.cat([part.double() for part in parts], dim=-1)


def _read(values: list[float], count: int, longest: int) -> TokenLogprobs:
    """One row of `_score`, made for `longest` alternatives, of which `count` are wanted."""
    return TokenLogprobs(
        logprob=values[0],
        rank=int(values[1]),
        top_token_ids=tuple(map(int, values[2 : 2 + count])),
        top_logprobs=tuple(values[2 + longest : 2 + longest + count]),
    )
