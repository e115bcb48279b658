"""The engine's tokens of one sequence, as the text that a client should see.

Joins detokenising and stop strings; knows no HTTP and no engine.
"""

from __future__ import annotations

from collections.abc import Sequence

from app.text.detokenizer import Detokenizer
from app.text.stop_strings import StopStrings


class TokenText:
    """One sequence's text, from its first token to its finish reason."""

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str]):
        self._detokenizer = detokenizer
        self._stops = StopStrings(stops)

    def push(self, token_id: int, finish_reason: str | None) -> tuple[str, str | None]:
        """The text to show now and the reason why it ends here, if it does.

        Args:
            token_id: The next token; one that ended the sequence with "stop" has no text.
            finish_reason: The engine's, on the sequence's last token.
        """
        piece = "" if finish_reason == "stop" else self._detokenizer.push(token_id)
        if finish_reason is not None:
            piece += self._detokenizer.flush()
        text, stopped = self._stops.push(piece)
        if stopped:
            return text, "stop"
        if finish_reason is not None:
            text += self._stops.flush()
        return text, finish_reason
