"""What a single token is called: its text on its own, and its bytes.

Takes token ids, gives what log probabilities are listed under. Knows no sequence.
"""

from __future__ import annotations

import re

from tokenizers import Tokenizer

_REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenNames:
    """The names of one vocabulary's tokens, special ones included; each is made once."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        # Behind another token a token keeps the space that a decoder strips at the very beginning.
        self._anchor = tokenizer.encode("a", add_special_tokens=False).ids
        self._anchor_text = self._decode(self._anchor)
        self._texts: dict[int, str] = {}

    def text(self, token_id: int) -> str:
        """Its text as it stands within a sequence; half a character is U+FFFD, an unknown id has none."""
        text = self._texts.get(token_id)
        if text is None:
            whole = self._decode([*self._anchor, token_id])
            text = self._texts[token_id] = whole[len(self._anchor_text) :]
        return text

    def piece_bytes(self, token_id: int, piece: str) -> bytes:
        """The bytes of a token whose text in its sequence is `piece`: of half a character, its own."""
        if _REPLACEMENT not in self.text(token_id):
            return piece.encode()
        token = self._tokenizer.id_to_token(token_id) or ""
        if byte_token := _BYTE_TOKEN.fullmatch(token):
            return bytes.fromhex(byte_token[1])
        if all(char in _BYTE_OF_CHARACTER for char in token):
            return bytes(_BYTE_OF_CHARACTER[char] for char in token)
        return piece.encode()

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)


def _byte_level_alphabet() -> dict[str, int]:
    """How byte-level vocabularies write bytes: printable ones as themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_level_alphabet()
