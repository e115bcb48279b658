"""The next token of every row of a batch, all rows at once, on the logits' device.

In vLLM's order: raw logprobs are log_softmax of the model's logits; then, in float32, constraints (allowed and
banned tokens, min_tokens, logit_bias), penalties (repetition over prompt and output; frequency, presence over
output), and for rows that are not greedy temperature, min_p, top_k, top_p and the draw. Rows never influence one
another. What a batch needs beside its logits is kept while the batch stays the same.

The host waits for the device once per step, when it collects the tokens; until then the step after may be launched, as
sequences have a place for the unknown token. Knows neither spans nor messages to the server.
"""

from __future__ import annotations

from collections.abc import Sequence as Collection
from typing import NamedTuple

import torch

from app.engine.sampling.constraints import Constraints, is_constrained
from app.engine.sampling.device import Readback
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


class PendingDraw:
    """The tokens of one step, drawn or about to be, until the host collects them.

    `token_ids` (rows,) are on the device, all of them in the vocabulary, also where none could be drawn.
    """

    def __init__(
        self,
        token_ids: torch.Tensor,
        usable: torch.Tensor,
        logprobs: tuple[LogprobRows, torch.Tensor] | None,
        prompts: Collection[PromptScores],
    ):
        self.token_ids = token_ids
        self._logprobs = None if logprobs is None else logprobs[0]
        self._prompts = prompts
        scores = [] if logprobs is None else [logprobs[1]]
        scores += [prompt.scores for prompt in prompts]
        self._readback = Readback([torch.where(usable, token_ids, _NO_TOKEN), *scores])

    def collect(self) -> list[Drawn | None]:
        """Wait; a token for each row, None where its logits are not finite numbers or forbid every token.

        The prompts' scores are kept by their sequences.
        """
        token_ids, *scores = self._readback.values()
        logprobs = {} if self._logprobs is None else self._logprobs.read(scores.pop(0))
        for prompt, values in zip(self._prompts, scores, strict=True):
            prompt.keep(values)
        return [
            None if token_id == _NO_TOKEN else Drawn(int(token_id), logprobs.get(row))
            for row, token_id in enumerate(token_ids)
        ]


class Sampler:
    """Draws tokens; remembers the last batch."""

    def __init__(self) -> None:
        self._plan: _Plan | None = None

    def launch(
        self, logits: torch.Tensor, sequences: list[Sequence], prompts: Collection[PromptScores] = ()
    ) -> PendingDraw:
        """Queue the draw of a token for each row of logits (rows, vocabulary), which may be none.

        The logits stay as they are. A sequence whose last token is unknown was in the launch before. `prompts` are
        fetched with the tokens.
        """
        plan, self._plan = self._plan, None  # a step that fails leaves no half-counted batch behind
        if plan is None or plan.sequences != sequences:
            plan = _Plan(sequences, logits.shape[-1], logits.device, plan)
        chosen, usable = plan.choose(logits)
        scored = None if plan.logprobs is None else (plan.logprobs, plan.logprobs.score(logits, chosen))
        draw = PendingDraw(chosen, usable, scored, prompts)
        self._plan = plan
        return draw

    def sample(self, logits: torch.Tensor, sequences: list[Sequence]) -> list[Drawn | None]:
        """`launch` and `collect` at once."""
        return self.launch(logits, sequences).collect()


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
