"""One sequence on its way through the engine: its tokens, its blocks, and when it ends.

Pure values; knows neither the scheduler nor tensors.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from app.messages import SamplingParams, Submit, TokenLogprobs

UNKNOWN_TOKEN = -1  # drawn, but not read by the host yet


@dataclass(eq=False)
class Sequence:
    """A prompt and what was generated after it.

    The last of `token_ids` may be an `UNKNOWN_TOKEN`. The keys and values of the first `computed_tokens` tokens are in
    the cache, in `block_ids`, once every step that was launched has ended. Of the prompt's
    tokens but the first, so many have their `prompt_logprobs`, if they were asked for. `cached_tokens` were in the
    cache when the sequence first ran; None before that. One that `has_ended` is nobody's any more.
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
    has_ended: bool = False

    @property
    def generated_tokens(self) -> int:
        """Tokens behind the prompt, an unknown one included."""
        return len(self.token_ids) - self.prompt_tokens

    @property
    def needs_prompt_logits(self) -> bool:
        """Whether the model must still compute prompt tokens for their logprobs: no cached key or value may skip them."""
        return self.sampling.prompt_logprobs is not None and len(self.prompt_logprobs) < self.prompt_tokens - 1

    @property
    def pending_tokens(self) -> int:
        """Tokens whose keys and values are not in the cache: 1 while decoding, more while prefilling."""
        return len(self.token_ids) - self.computed_tokens

    @property
    def awaits_its_last_token(self) -> bool:
        """Whether a token was drawn, not read, and nothing is computed after it whatever it is."""
        return self.token_ids[-1] == UNKNOWN_TOKEN and self.generated_tokens >= self.sampling.max_tokens

    @property
    def must_be_read(self) -> bool:
        """Whether the host must know what one step gave before it can launch the sequence's next."""
        return self.needs_prompt_logits or any(len(word) > 1 for word in self.sampling.bad_words)

    def expect_token(self) -> None:
        """A token is being drawn: it has its place before the host knows it."""
        if self.token_ids[-1] == UNKNOWN_TOKEN:
            raise RuntimeError(f"{self.request_id}: a token is unknown already")
        self.token_ids.append(UNKNOWN_TOKEN)

    def learn_token(self, token_id: int) -> str | None:
        """The unknown token is this; returns the finish reason if it is the last."""
        self.token_ids[-1] = token_id
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
