"""What the documents of a checkout hold: fenced blocks by section and language, and code within their lines.

Takes paths below the checkout's root, gives texts. Knows no command.
"""

from __future__ import annotations

import re

from tests.coldstream import ROOT
from tests.walkthrough.blocks import blocks

PAGES = (
    *("README.md", "CONTRIBUTING.md", "k8s/README.md", "tests/k8s/schemas/README.md"),
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")),
)
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def page(path: str) -> str:
    """The whole document."""
    return (ROOT / path).read_text(encoding="utf-8")


def texts(path: str, section: str, language: str) -> list[str]:
    """A section's blocks of one language, in order; whoever calls this does with them what the language says.

    `takers` finds the calls by their literal arguments.
    """
    return [block.text for block in blocks(page(path)) if (block.section, block.language) == (section, language)]


def prose(path: str) -> str:
    """The document without its fenced blocks."""
    return _FENCED.sub("", page(path))


def code(text: str) -> list[str]:
    """What stands between backticks, each in one line."""
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]
