"""Draws from what the logits say: temperature, min_p, top_k, top_p, inverse CDF.

A row's draw depends on its own logits, parameters, seed and position only: rows that keep the whole vocabulary
are drawn in its order, truncated ones from the best token down, whoever else is in the batch.
"""

from __future__ import annotations

import torch

from app.engine.sampling.device import Rows, column, to_device
from app.engine.sampling.ranking import top_ranked
from app.engine.sampling.uniform import uniforms
from app.engine.sequence import Sequence
from app.messages import SamplingParams

# As in vLLM: below this a division by the temperature tells no more than which token is best.
_GREEDY_BELOW = 1e-5
# On a CPU, where looking costs no wait, a nucleus within so many tokens saves the sort of all others.
_LIKELY_TOKENS = 1024
# Uniform numbers are made for so many steps at once, so that a steady batch uploads nothing.
_STEPS_AHEAD = 32


class Draws:
    """The random rows of one batch.

    Args:
        sequences: One per row; at least one `is_random`.
        vocab_size: Of the logits.
        device: Of the logits.
    """

    def __init__(self, sequences: list[Sequence], vocab_size: int, device: torch.device):
        rows = [row for row, sequence in enumerate(sequences) if is_random(sequence.sampling)]
        self.rows = Rows(rows, len(sequences), device)
        self._device = device
        self._sequences = [sequences[row] for row in rows]
        samplings = [sequence.sampling for sequence in self._sequences]
        self._temperature = column([sampling.temperature for sampling in samplings], torch.float32, device)
        self._min_p: torch.Tensor | None = None
        if any(sampling.min_p > 0 for sampling in samplings):
            self._min_p = column([sampling.min_p for sampling in samplings], torch.float32, device)
        whole = [row for row, sampling in enumerate(samplings) if not _truncates(sampling)]
        ranked = [row for row, sampling in enumerate(samplings) if _truncates(sampling)]
        self._whole = Rows(whole, len(rows), device)
        self._ranked = Rows(ranked, len(rows), device)
        self._nucleus = _Nucleus([samplings[row] for row in ranked], vocab_size, device) if ranked else None
        self._ahead = torch.empty(0)  # (random rows, steps), from these positions on
        self._positions: list[int] = []

    def draw(self, values: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
        """Token ids (random rows,); of a row that has no finite maximum, any.

        Args:
            values: Logits (rows, vocabulary).
            best: The largest of each row, (rows,).
        """
        values = self.rows.of(values).float()
        # The maximum goes first, or a small temperature would overflow.
        weights = (values - self.rows.of(best)[:, None]).div_(self._temperature).exp_()
        if self._min_p is not None:
            weights.masked_fill_(weights < self._min_p, 0.0)
        chances = self._chances()
        if self._nucleus is None:
            return _draw_from_all(weights, chances)
        ranked = self._ranked
        picked = self._nucleus.draw(ranked.of(values), ranked.of(weights), ranked.of(chances))
        if not self._whole.numbers:
            return picked
        drawn = _draw_from_all(self._whole.of(weights), self._whole.of(chances))
        merged = drawn.new_empty(len(self._sequences))
        return self._ranked.put(self._whole.put(merged, drawn), picked)

    def _chances(self) -> torch.Tensor:
        """Each row's uniform number for the position to be drawn, (random rows, 1) float64."""
        positions = [len(sequence.token_ids) for sequence in self._sequences]
        steps = {now - then for now, then in zip(positions, self._positions, strict=False)}
        step = steps.pop() if len(steps) == 1 else _STEPS_AHEAD
        if not 0 <= step < _STEPS_AHEAD:
            seeds = [sequence.seed for sequence in self._sequences]
            self._ahead = to_device(uniforms(seeds, positions, _STEPS_AHEAD), self._device)
            self._positions, step = positions, 0
        return self._ahead[:, step : step + 1]


class _Nucleus:
    """Rows with top_k or top_p: top_k first, top_p of what that leaves; of equal tokens the lowest ids stay."""

    def __init__(self, samplings: list[SamplingParams], vocab_size: int, device: torch.device):
        top_ks = [min(sampling.top_k or vocab_size, vocab_size) for sampling in samplings]
        self._top_k = column(top_ks, torch.long, device)
        self._top_p = column([sampling.top_p for sampling in samplings], torch.float64, device)
        self._has_top_k = column([0 < sampling.top_k < vocab_size for sampling in samplings], torch.bool, device)
        self._longest = max(top_ks)

    def draw(self, values: torch.Tensor, weights: torch.Tensor, chances: torch.Tensor) -> torch.Tensor:
        """Token ids (rows,) from weights (rows, vocabulary), ranked by values (rows, vocabulary)."""
        mass = weights.sum(dim=-1, keepdim=True, dtype=torch.float64)
        order, cumulated = self._best(values, weights, mass)
        available = order.shape[-1]
        last_in_k = self._top_k.clamp(max=available) - 1
        mass = torch.where(self._has_top_k, cumulated.gather(1, last_in_k), mass)
        # A token stays while those before it have not reached top_p of the mass; the first always does.
        last_in_p = torch.searchsorted(cumulated, self._top_p * mass).clamp_(max=available - 1)
        kept = cumulated.gather(1, torch.minimum(last_in_k, last_in_p))
        return order.gather(1, _invert(cumulated, kept, chances))[:, 0]

    def _best(
        self, values: torch.Tensor, weights: torch.Tensor, mass: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As many of the best tokens as every row needs, and their cumulated weights; both (rows, tokens)."""
        if self._longest > _LIKELY_TOKENS and values.device.type == "cpu":
            order, cumulated = _ranked(values, weights, min(_LIKELY_TOKENS, values.shape[-1]))
            inside_k = self._has_top_k & (self._top_k <= _LIKELY_TOKENS)
            inside_p = ~self._has_top_k & (cumulated[:, -1:] >= self._top_p * mass)
            if bool((inside_k | inside_p).all()):
                return order, cumulated
        return _ranked(values, weights, self._longest)


def is_random(sampling: SamplingParams) -> bool:
    """Whether the token is drawn rather than the best one taken."""
    return sampling.temperature >= _GREEDY_BELOW


def _truncates(sampling: SamplingParams) -> bool:
    return sampling.top_k > 0 or sampling.top_p < 1


def _ranked(values: torch.Tensor, weights: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    order = top_ranked(values, count)
    return order, weights.gather(1, order).cumsum(dim=-1, dtype=torch.float64)


def _draw_from_all(weights: torch.Tensor, chances: torch.Tensor) -> torch.Tensor:
    """Token ids (rows,) of rows that keep the whole vocabulary: no sort."""
    cumulated = weights.cumsum(dim=-1, dtype=torch.float64)
    return _invert(cumulated, cumulated[:, -1:].contiguous(), chances)[:, 0]


def _invert(cumulated: torch.Tensor, total: torch.Tensor, chances: torch.Tensor) -> torch.Tensor:
    """Indices (rows, 1) where cumulated weights (rows, tokens) pass that share of total (rows, 1)."""
    index = torch.searchsorted(cumulated, chances * total, right=True)
    # The second is the last index with any weight: rounding must not push a draw past it. A row of NaN finds none.
    return torch.minimum(index, torch.searchsorted(cumulated, total)).clamp_(max=cumulated.shape[-1] - 1)
