"""Token ids to text, one token at a time, never half a character.

Takes ids as the engine makes them, gives text whose concatenation is exactly the decoding of the whole
sequence. Knows no stop strings and no engine.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenizers import Tokenizer

# What an incomplete UTF-8 sequence decodes to.
_REPLACEMENT = "\ufffd"
_CONTEXT_TOKENS = 6
# Longer runs of byte tokens are not split among their tokens: that would take quadratic time.
_SPLIT_TOKENS = 16
# One byte of a character that the vocabulary lacks (SentencePiece's byte fallback).
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Detokenizer:
    """The text of one sequence as it grows.

    A token's text depends on its neighbours: the first of a sequence loses its leading space, and a
    character may span several tokens. So pending tokens are decoded together with the last piece given
    out, until they end on a character's border.

    Args:
        special_ids: Tokens that have no text (`skip_special_tokens`).
        after: The tokens before the sequence, where its text goes on from theirs: the first word then keeps the
            space that a decoder strips at the very beginning.
    """

    def __init__(self, tokenizer: Tokenizer, special_ids: frozenset[int], after: Sequence[int] = ()):
        self._tokenizer = tokenizer
        self._special_ids = special_ids
        self._context = self._whole_text_of(after[-_CONTEXT_TOKENS:])  # then of the last piece that was given out
        self._pending: list[int] = []
        self._untold: list[bool] = []  # the tokens since the first pending one: whether it has text
        self._told: list[str] = []

    def push(self, token_id: int) -> str:
        """The text that became certain with this token; empty while a character is incomplete."""
        token = self._tokenizer.id_to_token(token_id)
        has_text = token is not None and token_id not in self._special_ids
        if not has_text and not self._pending:
            self._told.append("")
            return ""
        self._untold.append(has_text)
        if token is None or not has_text:
            return ""
        self._pending.append(token_id)
        # One bad byte turns its whole run of byte tokens into replacement characters, so the run's text
        # is certain only when it has ended.
        if _BYTE_TOKEN.fullmatch(token):
            return ""
        text = self._pending_text()
        if not text or text.endswith(_REPLACEMENT):
            return ""
        self._tell(text)
        self._context, self._pending = self._pending, []
        return text

    def flush(self) -> str:
        """The rest, now that no token follows; an incomplete character shows as U+FFFD."""
        text = self._pending_text() if self._pending else ""
        self._tell(text)
        self._context, self._pending = self._context + self._pending, []
        return text

    def take_token_texts(self) -> list[str]:
        """The text of each token that became certain since the last call; together, what was given out since then.

        A character belongs to the token that completes it.
        """
        told, self._told = self._told, []
        return told

    def _tell(self, text: str) -> None:
        texts = iter(self._split(text))
        self._told += [next(texts) if has_text else "" for has_text in self._untold]
        self._untold.clear()

    def _split(self, text: str) -> list[str]:
        """The text of each pending token."""
        if len(self._pending) == 1:
            return [text]
        texts: list[str] = []
        start = 0
        given = len(self._decode(self._context))
        for count in range(1, len(self._pending)):
            end = start
            if len(self._pending) <= _SPLIT_TOKENS:
                so_far = self._decode(self._context + self._pending[:count])[given:]
                end = max(start, _common_chars(so_far, text))
            texts.append(text[start:end])
            start = end
        return [*texts, text[start:]]

    def _whole_text_of(self, token_ids: Sequence[int]) -> list[int]:
        """The tokens that have text; none at all if it may end within a character."""
        tokens = {token_id: self._tokenizer.id_to_token(token_id) or "" for token_id in token_ids}
        kept = [token_id for token_id in token_ids if tokens[token_id] and token_id not in self._special_ids]
        cut = any(_BYTE_TOKEN.fullmatch(tokens[token_id]) for token_id in kept) or _REPLACEMENT in self._decode(kept)
        return [] if cut else kept

    def _pending_text(self) -> str:
        given = self._decode(self._context)
        return self._decode(self._context + self._pending)[len(given) :]

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False) if token_ids else ""


def _common_chars(one: str, other: str) -> int:
    """How many characters both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (left, right) in pairs if left != right), min(len(one), len(other)))
