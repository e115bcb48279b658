"""What a GPU's steps are padded to, so that a few CUDA graphs serve all of them. Pure numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# Up to here a decode step takes as long as its weights take to be read, whatever is padded.
_DOUBLING_ROWS = 32
_ROWS_STEP = 32
# A step of many tokens takes time for each of them: a quarter of padding at most, from the second on.
_TOKENS_STEP = 128
_LARGE_TOKENS = 1024
_LARGE_TOKENS_STEP = 256


@dataclass(frozen=True)
class Shape:
    """So many tokens. With `decodes`, each is another sequence's and draws its next one."""

    tokens: int
    decodes: bool


@dataclass(frozen=True)
class Limits:
    """The largest step, and the longest sequence."""

    max_tokens: int
    max_sequences: int
    max_model_len_tokens: int

    @property
    def padded_tokens(self) -> int:
        """Tokens of the largest shape."""
        return max(_padded_tokens(self.max_tokens), self.padded_sequences)

    @property
    def padded_sequences(self) -> int:
        """Sequences of the largest shape."""
        return _padded_rows(min(self.max_sequences, self.max_tokens))


def shape_of(tokens: Sequence[int], *, decodes: bool) -> Shape:
    """The shape of a step with so many tokens of each sequence, all of which draw a token if `decodes`."""
    if decodes and max(tokens) == 1:
        return Shape(_padded_rows(len(tokens)), decodes=True)
    return Shape(_padded_tokens(sum(tokens)), decodes=False)


def all_shapes(limits: Limits) -> Iterator[Shape]:
    """Every shape within the limits, those of small steps first, decoding before anything else."""
    for decodes, most in ((True, limits.padded_sequences), (False, _padded_tokens(limits.max_tokens))):
        tokens = 0
        while tokens < most:
            tokens = _padded_rows(tokens + 1) if decodes else _padded_tokens(tokens + 1)
            yield Shape(tokens, decodes)


def _padded_rows(rows: int) -> int:
    return 1 << (rows - 1).bit_length() if rows <= _DOUBLING_ROWS else _up(rows, _ROWS_STEP)


def _padded_tokens(tokens: int) -> int:
    return _up(tokens, _TOKENS_STEP if tokens <= _LARGE_TOKENS else _LARGE_TOKENS_STEP)


def _up(value: int, step: int) -> int:
    return -(-value // step) * step
