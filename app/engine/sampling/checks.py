"""Whether sampling parameters can be obeyed, asked before a sequence enters a batch.

What would fail inside a step fails everyone in it. Knows no tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from app.messages import SamplingParams


class UnusableSampling(Exception):
    """These parameters have no meaning for this model; the message names the one at fault."""


def check_sampling(sampling: SamplingParams, vocab_size: int) -> None:
    """Return if every step can obey `sampling`.

    Raises:
        UnusableSampling: A number out of range, a token id outside the vocabulary, or no token left to draw.
    """
    _check_numbers(sampling, vocab_size)
    _check_token_ids("logit_bias", (token_id for token_id, _ in sampling.logit_bias), vocab_size)
    _check_token_ids("allowed_token_ids", sampling.allowed_token_ids, vocab_size)
    for word in sampling.bad_words:
        if not word:
            raise UnusableSampling("bad_words: a banned sequence is empty")
        _check_token_ids("bad_words", word, vocab_size)
    if not _leaves_a_token(sampling, vocab_size):
        raise UnusableSampling("allowed_token_ids, bad_words and min_tokens together leave no token to draw")


def _check_numbers(sampling: SamplingParams, vocab_size: int) -> None:
    # Within these every float32 that they make of a finite logit is finite.
    ranges = {
        "temperature": (0, 1000),
        "top_p": (0, 1),
        "min_p": (0, 1),
        "top_k": (0, math.inf),
        "min_tokens": (0, sampling.max_tokens),
        "presence_penalty": (-2, 2),
        "frequency_penalty": (-2, 2),
        "repetition_penalty": (0.01, 100),
        "logprobs": (0, vocab_size),
        "prompt_logprobs": (0, vocab_size),
    }
    for name, (low, high) in ranges.items():
        value = getattr(sampling, name)
        if value is not None and not low <= value <= high:  # as NaN never is
            raise UnusableSampling(f"{name} is {value}, which is not in [{low}, {high}]")
    if not all(-100 <= bias <= 100 for _, bias in sampling.logit_bias):
        raise UnusableSampling("logit_bias: a bias is not in [-100, 100]")


def _check_token_ids(name: str, token_ids: Iterable[int], vocab_size: int) -> None:
    wrong = next((token_id for token_id in token_ids if not 0 <= token_id < vocab_size), None)
    if wrong is not None:
        raise UnusableSampling(f"{name}: token id {wrong} is outside the vocabulary of {vocab_size}")


def _leaves_a_token(sampling: SamplingParams, vocab_size: int) -> bool:
    banned = {word[0] for word in sampling.bad_words if len(word) == 1}
    if sampling.min_tokens:
        banned.update(sampling.stop_token_ids)
    allowed = sampling.allowed_token_ids or range(vocab_size)
    return len(allowed) > len(banned) or any(token_id not in banned for token_id in allowed)
