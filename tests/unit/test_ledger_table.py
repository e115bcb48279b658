"""The startup ledger as `make demo` prints it."""

from __future__ import annotations

from tools.ledger_table import ledger_lines


def test_bars_share_one_scale() -> None:
    """A phase's bar starts and ends where its times are on the way from exec to the last mark."""
    ledger = {
        "state": "ready",
        "phases": [{"name": "fetch", "start_s": 0.0, "end_s": 1.0}, {"name": "warm", "start_s": 1.0, "end_s": 2.0}],
        "milestones": {"first_token_time": 4.0},
    }

    assert ledger_lines(ledger) == [
        "  phase               start      end  seconds since exec",
        "  fetch               0.000    1.000  " + "#" * 10,
        "  warm                1.000    2.000  " + " " * 10 + "#" * 10,
        "",
        "  milestone                       at",
        "  first_token_time             4.000  " + " " * 39 + "#",
    ]


def test_an_empty_ledger_has_headings_only() -> None:
    """Nothing is invented before the first phase has been recorded."""
    lines = ledger_lines({"phases": [], "milestones": {}})

    assert [line.split()[:1] for line in lines] == [["phase"], [], ["milestone"]]
