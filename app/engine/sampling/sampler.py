"""The next token of every row of a batch, all rows at once, on the logits' device.

In vLLM's order: raw logprobs are log_softmax of the model's logits; then, in float32, constraints (allowed and
banned tokens, min_tokens, logit_bias), penalties (repetition over prompt and output; frequency, presence over
output), and for rows that are not greedy temperature, min_p, top_k, top_p and the draw. Rows never influence one
another. What a batch needs beside its logits is kept while the batch stays the same.

The host waits for the device once per step. Knows neither spans nor messages to the server.
"""

from __future__ import annotations

from collections.abc import Sequence as Collection
from typing import NamedTuple

import torch

from app.engine.sampling.constraints import Constraints, is_constrained
from app.engine.sampling.device import fetch
from app.engine.sampling.draws import Draws, is_random
from app.engine.sampling.logprobs import LogprobRows, PromptScores
from app.engine.sampling.penalties import Penalties, is_penalised
from app.engine.sequence import Sequence
from app.messages import TokenLogprobs

_NO_TOKEN = -1


class Drawn(NamedTuple):
    """A token, and its logprobs where the sequence asks for them."""

    token_id: int
    logprobs: TokenLogprobs | None = None


class Sampler:
    """Draws tokens; remembers the last batch."""

    def __init__(self) -> None:
        self._plan: _Plan | None = None

    def sample(
        self, logits: torch.Tensor, sequences: list[Sequence], prompts: Collection[PromptScores] = ()
    ) -> list[Drawn | None]:
        """A token for each row of logits (rows, vocabulary), which may be none; the logits stay as they are.

        None where a row's logits are not finite numbers, or forbid every token. `prompts` are fetched with the
        tokens and kept by their sequences.
        """
        if not sequences and not prompts:
            return []
        plan, self._plan = self._plan, None  # a step that fails leaves no half-counted batch behind
        if plan is None or plan.sequences != sequences:
            plan = _Plan(sequences, logits.shape[-1], logits.device, plan)
        chosen, usable = plan.choose(logits)
        tensors = [torch.where(usable, chosen, _NO_TOKEN)]
        if plan.logprobs is not None:
            tensors.append(plan.logprobs.score(logits, chosen))
        token_ids, *scores = fetch([*tensors, *(prompt.scores for prompt in prompts)])
        token_ids = list(map(int, token_ids))
        if plan.penalties is not None:
            plan.penalties.counted(token_ids)
        logprobs = plan.logprobs.read(scores.pop(0)) if plan.logprobs is not None else {}
        for prompt, values in zip(prompts, scores, strict=True):
            prompt.keep(values)
        self._plan = plan
        return [
            None if token_id == _NO_TOKEN else Drawn(token_id, logprobs.get(row))
            for row, token_id in enumerate(token_ids)
        ]


class _Plan:
    """What one batch needs, as far as any of its sequences asks for it."""

    def __init__(self, sequences: list[Sequence], vocab_size: int, device: torch.device, previous: _Plan | None):
        self.sequences = sequences
        samplings = [sequence.sampling for sequence in sequences]
        self._constraints: Constraints | None = None
        self.penalties: Penalties | None = None
        self._draws: Draws | None = None
        self.logprobs: LogprobRows | None = None
        if any(map(is_constrained, samplings)):
            self._constraints = Constraints(sequences, vocab_size, device)
        if any(map(is_penalised, samplings)):
            self.penalties = Penalties(sequences, vocab_size, device, previous.penalties if previous else None)
        if any(map(is_random, samplings)):
            self._draws = Draws(sequences, vocab_size, device)
        if any(sampling.logprobs is not None for sampling in samplings):
            self.logprobs = LogprobRows(sequences, device)

    def choose(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids (rows,), all of them in the vocabulary, and whether they mean anything (rows,)."""
        best, chosen = logits.max(dim=-1)  # a NaN anywhere in a row is its maximum
        usable = best.abs() < torch.inf
        values = logits
        if self._constraints is not None or self.penalties is not None:
            values = logits.to(torch.float32, copy=True)
            if self._constraints is not None:
                values = self._constraints.apply(values)
            if self.penalties is not None:
                values = self.penalties.apply(values)
            best, chosen = values.max(dim=-1)
            usable &= best.abs() < torch.inf
        if self._draws is not None:
            chosen = self._draws.rows.put(chosen, self._draws.draw(values, best))
        if self.penalties is not None:
            self.penalties.count(chosen)
        return chosen, usable
