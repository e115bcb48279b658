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
# One byte of a character that the vocabulary lacks (SentencePiece's byte fallback).
_CONTEXT_TOKENS = 6
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

    def push(self, token_id: int) -> str:
        """The text that became certain with this token; empty while a character is incomplete."""
        token = self._tokenizer.id_to_token(token_id)
        if token is None or token_id in self._special_ids:
            return ""
        self._pending.append(token_id)
        # One bad byte turns its whole run of byte tokens into replacement characters, so the run's text
        # is certain only when it has ended.
        if _BYTE_TOKEN.fullmatch(token):
            return ""
        text = self._pending_text()
        if not text or text.endswith(_REPLACEMENT):
            return ""
        self._context, self._pending = self._pending, []
        return text

    def flush(self) -> str:
        """The rest, now that no token follows; an incomplete character shows as U+FFFD."""
        text = self._pending_text() if self._pending else ""
        self._context, self._pending = self._context + self._pending, []
        return text

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
