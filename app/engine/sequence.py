"""One sequence on its way through the engine: its tokens, its blocks, and when it ends.

Pure values; knows neither the scheduler nor tensors.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from app.messages import SamplingParams, Submit, TokenLogprobs


@dataclass(eq=False)
class Sequence:
    """A prompt and what was generated after it.

    The keys and values of the first `computed_tokens` tokens are in the cache, in `block_ids`. Of the prompt's
    tokens but the first, so many have their `prompt_logprobs`, if they were asked for. `cached_tokens` were in the
    cache when the sequence first ran; None before that.
    """

    request_id: str
    sampling: SamplingParams
    seed: int
    prompt_tokens: int
    token_ids: list[int]
    block_ids: list[int] = field(default_factory=list)
    computed_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    cached_tokens: int | None = None

    @property
    def generated_tokens(self) -> int:
        """Tokens behind the prompt."""
        return len(self.token_ids) - self.prompt_tokens

    @property
    def needs_prompt_logits(self) -> bool:
        """Whether the model must still compute prompt tokens for their logprobs: no cached key or value may skip them."""
        return self.sampling.prompt_logprobs is not None and len(self.prompt_logprobs) < self.prompt_tokens - 1

    @property
    def pending_tokens(self) -> int:
        """Tokens whose keys and values are not in the cache: 1 while decoding, more while prefilling."""
        return len(self.token_ids) - self.computed_tokens

    def append(self, token_id: int) -> str | None:
        """Add a generated token; returns the finish reason if it is the last."""
        self.token_ids.append(token_id)
        if token_id in self.sampling.stop_token_ids:
            return "stop"
        if self.generated_tokens >= self.sampling.max_tokens:
            return "length"
        return None


def new_sequence(submit: Submit) -> Sequence:
    """The sequence that `submit` asks for; without a seed it gets one of its own."""
    sampling = submit.sampling
    return Sequence(
        request_id=submit.request_id,
        sampling=sampling,
        seed=secrets.randbits(64) if sampling.seed is None else sampling.seed,
        prompt_tokens=len(submit.prompt_token_ids),
        token_ids=list(submit.prompt_token_ids),
    )
