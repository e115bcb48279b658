"""Cuts a text at the first stop string, wherever its pieces' borders fall.

Takes text piece by piece, gives what is certain not to belong to a stop string. Knows no tokens.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """One text's stop strings.

    The stop string that is complete first ends the text (the longest, if several are complete at the
    same character). Nothing behind it is given out, and it itself only with `include`.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False):
        self._stops = tuple(stops)
        self._include = include
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """The text to give out now, and whether a stop string has ended it."""
        text = self._held + piece
        cut = self._cut(text)
        if cut is not None:
            self._held = ""
            return text[:cut], True
        keep = len(text) - self._possible_start_chars(text)
        self._held = text[keep:]
        return text[:keep], False

    def flush(self) -> str:
        """What was held back, now that no text follows."""
        text, self._held = self._held, ""
        return text

    def _cut(self, text: str) -> int | None:
        matches = ((start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0)
        first = min(matches, default=None)
        return None if first is None else first[0 if self._include else 1]

    def _possible_start_chars(self, text: str) -> int:
        """How many of the text's last characters may be the beginning of a stop string."""
        for count in range(min(len(text), self._longest - 1), 0, -1):
            if any(stop.startswith(text[-count:]) for stop in self._stops):
                return count
        return 0
