"""The tables of docs/operating.md are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

from app.telemetry.document import with_tables
from app.telemetry.names import PHASES


def test_the_tables_are_todays():
    """`python -m app.telemetry.document docs/operating.md` would change nothing."""
    document = (Path(__file__).parents[2] / "docs" / "operating.md").read_text(encoding="utf-8")
    assert with_tables(document) == document


def test_every_phase_that_is_recorded_has_a_meaning():
    """Whatever a process calls a phase of the startup is in the list."""
    root = Path(__file__).parents[2]
    sources = [
        path.read_text(encoding="utf-8") for folder in ("app", "streaming") for path in (root / folder).rglob("*.py")
    ]
    recorded = {
        name
        for source in sources
        for name in re.findall(r'(?:PhaseTimed\(name=|_timed\(connection, |ledger\.phase\()"([^"]+)"', source)
    }
    assert recorded == set(PHASES)
