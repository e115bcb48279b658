"""The tables of docs/operating.md are those of the code."""

from __future__ import annotations

from pathlib import Path

from app.telemetry.document import with_tables


def test_the_tables_are_todays():
    """`python -m app.telemetry.document docs/operating.md` would change nothing."""
    document = (Path(__file__).parents[2] / "docs" / "operating.md").read_text(encoding="utf-8")
    assert with_tables(document) == document
