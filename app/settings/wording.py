"""One setting in words, as --help and docs/settings.md say it.

Takes rows of the table. Knows no value that was given.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from app.settings.kinds import NOT, Kind, shown_bytes
from app.settings.table import ACTIVE, Row


def flag_help(row: Row, kind: Kind) -> str:
    """What --help says beside a flag."""
    if kind is NOT:
        return f"Not {next(iter(row.flags()))}. Expects {kind.accepts}."
    return f"{meaning(row)} Expects {kind.accepts}; default: {default_text(row)}. [{', '.join(row.variables())}]"


def flagless_help(rows: Iterable[Row]) -> str | None:
    """What --help says above a section's flags: the settings that have none."""
    lines = [f"  {', '.join(_other_names(row))}: {meaning(row)}" for row in rows if not row.flags()]
    return "\n".join(("without a flag:", *lines)) if lines else None


def _other_names(row: Row) -> list[str]:
    return [*row.variables(), *(f"{row.section}.{key} in the file" for key in row.keys())]  # noqa: SIM118 - not a dict


def default_text(row: Row) -> str:
    """The default, in its unit."""
    value: Any = row.default
    if value is None or value in ("", ()):
        return row.setting.unset
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ", ".join(value)
    if row.setting.unit == "bytes":
        return shown_bytes(value)
    return f"{value:g} {row.setting.unit}" if row.setting.unit else str(value)


def meaning(row: Row) -> str:
    """What it is for, and why giving it changes nothing where that is so."""
    status = row.setting.status
    return row.setting.help if status == ACTIVE else f"{row.setting.help} {status[0].upper()}{status[1:]}."
