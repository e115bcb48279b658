"""Log lines: JSON where a collector reads them, text on a terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys

import pytest

CODE = """
import logging, sys
from app.telemetry.logs import configure, current_trace
from app.telemetry.spans import RequestTrace, SpanContext
configure("info", sys.argv[1])
log = logging.getLogger("a.b")
log.info("plain %s", "ü\\n2")
log.debug("unheard")
current_trace.set(RequestTrace(SpanContext("ab" * 16, "cd" * 8), None, True))
try:
    1 / 0
except ZeroDivisionError:
    log.exception("failed")
"""


def logged(log_format: str, stderr: int) -> None:
    subprocess.run([sys.executable, "-c", CODE, log_format], stderr=stderr, check=True)


@pytest.mark.parametrize("log_format", ["json", "auto"])
def test_without_a_terminal_every_line_is_an_object(log_format, tmp_path):
    """With the trace of the request that caused it, and an exception on the same line."""
    path = tmp_path / "log"
    with path.open("wb") as file:
        logged(log_format, file.fileno())
    plain, failed = map(json.loads, path.read_text().splitlines())
    assert (plain["level"], plain["logger"], plain["message"]) == ("INFO", "a.b", "plain ü\n2")
    assert plain["time"].endswith("Z")
    assert "trace_id" not in plain
    assert (failed["trace_id"], failed["span_id"]) == ("ab" * 16, "cd" * 8)
    assert "ZeroDivisionError" in failed["exception"]


def test_a_terminal_gets_text():
    """As people read it."""
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", closefd=True) as screen, os.fdopen(theirs, "wb") as terminal:
        logged("auto", terminal.fileno())
        text = os.read(screen.fileno(), 10_000).decode()
    assert " INFO a.b: plain ü" in text
    assert "{" not in text
