"""The tables of metrics, phases and retries in docs/operating.md: `python -m app.telemetry.document docs/operating.md` writes them.

Takes the names and a document, gives the document with the tables between their marks. Knows no value.
"""

from __future__ import annotations

import sys
from pathlib import Path

from app.telemetry import names
from streaming.retry_policy import RULES

_BEGIN, _END = "<!-- {}: made by app.telemetry.document -->\n", "<!-- end of {} -->\n"


def with_tables(document: str) -> str:
    """The document with today's tables between their marks."""
    for topic, table in {"metrics": _metrics(), "phases": _phases(), "retries": _retries()}.items():
        before, rest = document.split(_BEGIN.format(topic))
        document = before + _BEGIN.format(topic) + table + _END.format(topic) + rest.split(_END.format(topic))[1]
    return document


def _metrics() -> str:
    lines = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for metric in names.METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        convention = f" OpenTelemetry's `{metric.convention}`." if metric.convention else ""
        lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help}{convention} |")
    return "\n".join(lines) + "\n"


def _phases() -> str:
    lines = ["| phase | from, to |", "|---|---|", *(f"| `{name}` | {help_} |" for name, help_ in names.PHASES.items())]
    return "\n".join(lines) + "\n"


def _retries() -> str:
    """The causes by which reads are tried again."""
    lines = ["| cause | meaning | first wait at most |", "|---|---|---|"]
    for cause, rule in RULES.items():
        grace = f", in a load's first {rule.grace_s:g} s only" if rule.grace_s else ""
        lines.append(f"| `{cause}` | {rule.meaning}{grace} | {rule.first_wait_s:g} s |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
