"""The commands of a walkthrough: the bash blocks of a Markdown file, by the section that they stand in.

Takes the file's text, gives blocks and scripts. Knows no command.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

# What a reader does behind a block: goes on only if it has not failed.
_LOOK = "(exit $?) || exit\n"


class Block(NamedTuple):
    """A fenced block: the heading above it, its language, its text."""

    section: str
    language: str
    text: str


def blocks(markdown: str) -> list[Block]:
    """Every fenced block, in order.

    Raises:
        AssertionError: A fence is not closed.
    """
    found, section, language, lines = [], "", None, []
    for line in markdown.splitlines():
        if fence := re.fullmatch(r"```(\w*)", line):
            if language is not None:
                found.append(Block(section, language, "\n".join(lines) + "\n"))
            language, lines = (fence[1], []) if language is None else (None, [])
        elif language is not None:
            lines.append(line)
        elif heading := re.fullmatch(r"#+ (.+)", line):
            section = heading[1]
    assert language is None
    return found


def script(markdown: str, sections: Collection[str] = (), without: Collection[str] = ()) -> str:
    """The bash blocks one after another, as they would be pasted, of all sections or of some; it ends behind one that fails.

    Args:
        markdown: The file's text.
        sections: Which; empty is all.
        without: Sections that are left out.
    """
    chosen = [
        block.text + _LOOK
        for block in blocks(markdown)
        if block.language == "bash" and block.section not in without and (not sections or block.section in sections)
    ]
    return "\n".join(chosen)
