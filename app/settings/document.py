"""docs/settings.md, made from the table: `python -m app.settings.document` prints it.

Takes the table. Knows no value that was given.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from app.settings.kinds import Kind
from app.settings.table import Row
from app.settings.tree import ROWS, SECTIONS
from app.settings.wording import default_text, meaning

_INTRODUCTION = """\
# Settings

Made from the declarations in `app/settings/` by `python -m app.settings.document > docs/settings.md`.

A flag wins over a variable, a variable over the `--config` file (or `COLDSTREAM_CONFIG`), the file over the
default. Names that nobody knows and values of the wrong kind are errors (exit 2). An empty variable is unset.
Where a setting has several variables, the first that is set wins. In the file, a setting is a key of its
section; secrets are not read from it. `push`, `inspect` and `verify` read the same variables and the same file,
and take the flags of `storage` and `observability`.

A flag that accepts true or false stands alone for true, and with `--no-` before its name for false: `--enable-prefix-caching`,
`--no-enable-prefix-caching`, `--enable-prefix-caching false` and `--enable-prefix-caching=false` are all accepted.

`--model-loader-extra-config JSON` takes vLLM's keys `concurrency`, `memory_limit` and `distributed`.
"""
_HEADER = "| key | flag | variables | accepts | default | meaning |\n|---|---|---|---|---|---|"


def markdown() -> str:
    """The whole of docs/settings.md."""
    return "\n".join((_INTRODUCTION, *(_table(section) for section in SECTIONS)))


def _table(section: str) -> str:
    lines = (_line(row) for row in ROWS if row.section == section)
    return "\n".join((f"## {section}\n", _HEADER, *lines, ""))


def _line(row: Row) -> str:
    setting = row.setting
    names = (_names(named, setting.kind) for named in (row.keys(), row.flags(), row.variables()))
    return f"| {' | '.join((*names, setting.kind.accepts, default_text(row), meaning(row)))} |"


def _names(names: Mapping[str, Kind], usual: Kind) -> str:
    """The names, each with what it accepts where that is not the setting's usual kind."""
    return "<br>".join(f"`{name}`" + ("" if kind is usual else f" ({kind.accepts})") for name, kind in names.items())


if __name__ == "__main__":
    sys.stdout.write(markdown())
