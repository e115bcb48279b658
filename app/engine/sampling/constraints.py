"""What a request adds to its logits whatever was generated, and the tokens that it forbids right now.

`logit_bias`, `allowed_token_ids` and banned single tokens are one matrix, built when the batch changes. Stop
tokens before `min_tokens` and the last tokens of banned sequences are looked up on the host at every step, for
the sequences that have any.
"""

from __future__ import annotations

import torch

from app.engine.sampling.device import Rows, upload
from app.engine.sequence import Sequence
from app.messages import SamplingParams


class Constraints:
    """The constraints of one batch.

    Args:
        sequences: One per row; at least one `is_constrained`.
        vocab_size: Of the logits.
        device: Of the logits.
    """

    def __init__(self, sequences: list[Sequence], vocab_size: int, device: torch.device):
        self._vocab_size = vocab_size
        self._device = device
        fixed = [row for row, sequence in enumerate(sequences) if _has_fixed(sequence.sampling)]
        self._fixed_rows = Rows(fixed, len(sequences), device)
        self._bias = torch.zeros(len(fixed), vocab_size, device=device)
        for bias, row in zip(self._bias, fixed, strict=True):
            _fill(bias, sequences[row].sampling)
        self._changing = [(row, sequence) for row, sequence in enumerate(sequences) if _has_changing(sequence.sampling)]
        self._forbidden: list[tuple[int, int]] = []
        self._forbidden_index: tuple[torch.Tensor, ...] = ()
        self._nothing = torch.full((), -torch.inf, device=device)

    def apply(self, values: torch.Tensor) -> torch.Tensor:
        """Float32 logits (rows, vocabulary), constrained in place."""
        if self._fixed_rows.numbers:
            values = self._fixed_rows.put(values, self._fixed_rows.of(values).add_(self._bias))
        forbidden = [(row, token_id) for row, sequence in self._changing for token_id in self._forbidden_in(sequence)]
        if forbidden != self._forbidden:
            self._forbidden = forbidden
            self._forbidden_index = upload(forbidden, torch.long, self._device).unbind(1) if forbidden else ()
        if forbidden:
            values.index_put_(self._forbidden_index, self._nothing)
        return values

    def _forbidden_in(self, sequence: Sequence) -> list[int]:
        """The token ids that may not come next, because of what has been generated so far."""
        sampling, generated = sequence.sampling, sequence.generated_tokens
        forbidden: list[int] = []
        if generated < sampling.min_tokens:
            # A stop token that the model cannot say needs no ban.
            forbidden += [token_id for token_id in sampling.stop_token_ids if 0 <= token_id < self._vocab_size]
        for word in sampling.bad_words:
            begun = len(word) - 1
            if 0 < begun <= generated and sequence.token_ids[-begun:] == list(word[:-1]):
                forbidden.append(word[-1])
        return forbidden


def is_constrained(sampling: SamplingParams) -> bool:
    """Whether any token is made likelier, unlikelier or impossible by its id."""
    return _has_fixed(sampling) or _has_changing(sampling)


def _has_fixed(sampling: SamplingParams) -> bool:
    return bool(sampling.logit_bias or sampling.allowed_token_ids or any(len(word) == 1 for word in sampling.bad_words))


def _has_changing(sampling: SamplingParams) -> bool:
    return sampling.min_tokens > 0 or any(len(word) > 1 for word in sampling.bad_words)


def _fill(bias: torch.Tensor, sampling: SamplingParams) -> None:
    """Write what is added to one sequence's logits into `bias` (vocabulary,), which is zero."""
    device = bias.device
    if sampling.allowed_token_ids:
        bias.fill_(-torch.inf).index_fill_(0, upload(sampling.allowed_token_ids, torch.long, device), 0.0)
    if sampling.logit_bias:
        token_ids, biases = zip(*sampling.logit_bias, strict=True)
        bias.index_add_(0, upload(token_ids, torch.long, device), upload(biases, torch.float32, device))
    banned = [word[0] for word in sampling.bad_words if len(word) == 1]
    if banned:
        bias.index_fill_(0, upload(banned, torch.long, device), -torch.inf)
