"""The engine's tokens of one sequence, as the text that a client should see.

Joins detokenising and stop strings; knows no HTTP and no engine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from app.text.detokenizer import Detokenizer
from app.text.stop_strings import StopStrings


class TokenText:
    """One sequence's text, from its first token to its finish reason, always in whole tokens.

    Args:
        detokenizer: Of this sequence.
        stops: Stop strings, at the first of which the text ends.
        include_stop: Whether the stop string, or the text of the stop token, is shown.
    """

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str], *, include_stop: bool = False):
        self._detokenizer = detokenizer
        self._stops = StopStrings(stops, include=include_stop) if stops else None
        self._include_stop = include_stop
        self._held: deque[str] = deque()  # token by token
        self._passed_chars = 0  # of what is held, how much no stop string can take back

    def push(self, token_id: int, finish_reason: str | None) -> tuple[tuple[str, ...], str | None]:
        """The texts of the tokens to show now, in the order of the tokens, and the reason why it ends here, if it does.

        A token whose text may begin a stop string waits for its successors. At the end, tokens from a stop string on
        are not shown, and one that it begins in is shown up to it.

        Args:
            token_id: The next token; one that ended the sequence with "stop" has no text, unless it is included.
            finish_reason: The engine's, on the sequence's last token.
        """
        silent = finish_reason == "stop" and not self._include_stop
        piece = "" if silent else self._detokenizer.push(token_id)
        if finish_reason is not None:
            piece += self._detokenizer.flush()
        told = self._detokenizer.take_token_texts()
        if silent:
            told.append("")
        if self._stops is None:
            return tuple(told), finish_reason
        self._held += told
        text, stopped = self._stops.push(piece)
        if finish_reason is not None and not stopped:
            text += self._stops.flush()
        self._passed_chars += len(text)
        shown = self._shown()
        if stopped and self._passed_chars:
            shown.append(self._held[0][: self._passed_chars])
        return tuple(shown), "stop" if stopped else finish_reason

    def _shown(self) -> list[str]:
        """The held tokens whose whole text has passed."""
        shown: list[str] = []
        while self._held and len(self._held[0]) <= self._passed_chars:
            self._passed_chars -= len(self._held[0])
            shown.append(self._held.popleft())
        return shown
