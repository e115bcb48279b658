"""One check's outcome: what was found, and where that is not well, what to do.

Takes words and figures. Knows no check.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from streaming.errors import StreamingError

OK, WARNING, FAILED, SKIPPED = "ok", "warning", "failed", "skipped"
SOURCE, MODEL, DEVICE, SERVER = 3, 4, 5, 6
# Of a read that was tried again, as `streaming.retrying` ends its error.
_ATTEMPTS = re.compile(r" \(\d+ attempts in [^()]+\)$")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A check by name.

    `status` is ok, warning, failed or skipped. `detail` and `action` are one line each; an action goes with every
    warning and failure. `exit_code` is that of `serve` for a failure, else 0. `figures` have their units in their names.
    """

    name: str
    status: str
    detail: str
    action: str = ""
    exit_code: int = 0
    figures: dict[str, Any] = {}


def ok(name: str, detail: str, /, **figures: Any) -> Finding:
    """Nothing is to be done."""
    return Finding(name=name, status=OK, detail=_line(detail), figures=figures)


def warning(name: str, detail: str, action: str, /, **figures: Any) -> Finding:
    """`serve` would start, but not as well as it could, or nobody can tell yet."""
    return Finding(name=name, status=WARNING, detail=_line(detail), action=_line(action), figures=figures)


def failed(name: str, exit_code: int, detail: str, action: str, /, **figures: Any) -> Finding:
    """`serve` would end with `exit_code`."""
    return Finding(
        name=name, status=FAILED, detail=_line(detail), action=_line(action), exit_code=exit_code, figures=figures
    )


def skipped(name: str, reason: str) -> Finding:
    """It was not looked at."""
    return Finding(name=name, status=SKIPPED, detail=_line(reason))


def refused(name: str, error: StreamingError, /, **figures: Any) -> Finding:
    """What `serve` would end with, for an error that says what to do behind its last colon, and then how often it was tried."""
    line = str(error)
    tried = _ATTEMPTS.search(line)
    found, colon, remedy = (line[: tried.start()] if tried else line).rpartition(": ")
    if not colon:
        found, remedy = remedy, "correct what is named"
    return failed(name, error.exit_code, found + (tried[0] if tried else ""), remedy, **figures)


def unexpected(name: str, exit_code: int, error: Exception) -> Finding:
    """A fault of ours; its message is left out, because nobody knows what is in it."""
    return failed(
        name, exit_code, f"unexpected: {type(error).__name__}", "please report this; `coldstream serve` may say more"
    )


def shown_bytes(nbytes: float) -> str:
    """Bytes for people, to two places: "15.26 GiB"."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if abs(nbytes) >= unit:
            return f"{nbytes / unit:.2f} {name}"
    return f"{int(nbytes)} bytes"


def _line(text: str) -> str:
    return " ".join(text.split())
