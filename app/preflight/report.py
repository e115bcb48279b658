"""Findings as an exit code, as a table for people and as one JSON object for machines. Pure text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from app.preflight.finding import FAILED, OK, SKIPPED, WARNING, Finding

_COLOURS = {OK: "\x1b[32m", WARNING: "\x1b[33m", FAILED: "\x1b[31m", SKIPPED: "\x1b[2m"}
_PLAIN = "\x1b[0m"


def exit_code(findings: Sequence[Finding]) -> int:
    """That of the most basic failure, which is the one that `serve` would end with: source, model, device, server."""
    return min((finding.exit_code for finding in findings if finding.status == FAILED), default=0)


def table(uri: str, findings: Sequence[Finding], *, coloured: bool) -> str:
    """A line per check, what to do below those that are not well, and the verdict."""
    width = max(len(finding.name) for finding in findings)
    indent = " " * (width + 11)
    lines: list[str] = []
    for finding in findings:
        status = f"{finding.status:<7}"
        shown = f"{_COLOURS[finding.status]}{status}{_PLAIN}" if coloured else status
        lines.append(f"{finding.name:<{width}}  {shown}  {finding.detail}")
        if finding.action:
            lines.append(f"{indent}-> {finding.action}")
    return "\n".join((*lines, "", _verdict(uri, findings), ""))


def as_json(uri: str, device: str, findings: Sequence[Finding], elapsed_s: float) -> str:
    """One object on one line."""
    code = exit_code(findings)
    report: dict[str, Any] = {
        "command": "preflight",
        "uri": uri,
        "device": device,
        "would_serve": code == 0,
        "exit_code": code,
        "elapsed_s": round(elapsed_s, 3),
        "checks": [
            {
                "name": finding.name,
                "status": finding.status,
                "detail": finding.detail,
                "action": finding.action,
                "figures": finding.figures,
            }
            for finding in findings
        ],
    }
    return msgspec.json.encode(report).decode() + "\n"


def _verdict(uri: str, findings: Sequence[Finding]) -> str:
    counts = {status: sum(f.status == status for f in findings) for status in (FAILED, WARNING)}
    code = exit_code(findings)
    if code:
        return f"{uri} would not be served here: {counts[FAILED]} failed (exit {code})"
    warnings = f", {counts[WARNING]} to look at" if counts[WARNING] else ""
    return f"{uri} would be served here{warnings}"
