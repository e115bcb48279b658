"""No block of any document is only text: each has a language, is well formed in it, and some test runs or compares it."""

from __future__ import annotations

import ast
import json
import re
import subprocess

import pytest
import yaml

from tests.coldstream import ROOT
from tests.documents.pages import PAGES, page
from tests.documents.takers import takers
from tests.walkthrough.blocks import blocks


def parse_bash(text):
    """Bash reads it without running it."""
    subprocess.run(["bash", "-n", "-c", text], check=True, capture_output=True)


# What a block of each language is; `text` is an output or a drawing, which has no grammar.
PARSERS = {"bash": parse_bash, "python": ast.parse, "yaml": yaml.safe_load, "json": json.loads, "text": str}
ALL = [(path, block) for path in PAGES for block in blocks(page(path))]
IDS = [f"{path}-{number}-{block.language}" for number, (path, block) in enumerate(ALL)]


@pytest.mark.parametrize(("path", "block"), ALL, ids=IDS)
def test_a_block_is_of_its_language(path, block):
    """Which it names, and which has a meaning here."""
    assert block.language in PARSERS, f"{path}, {block.section}: name a language"
    PARSERS[block.language](block.text)


def test_every_block_is_taken_by_a_test():
    """Run, parsed or compared; what it says of its author's machine only is not worth a reader's time."""
    found = takers()
    keys = {(path, block.section, block.language) for path, block in ALL}
    assert [key for key in sorted(keys) if not {key, (key[0], "", key[2]), (key[0], "", "")} & found.keys()] == []


def test_every_test_finds_what_it_takes():
    """A section that was renamed, or a block that is gone, is missed."""
    ways = [(path, [("", ""), ("", block.language), (block.section, block.language)]) for path, block in ALL]
    keys = {(path, *way) for path, each in ways for way in each}
    found = takers()
    assert [(key, sorted(names)) for key, names in found.items() if key not in keys] == []
    assert len(found) > 8


def test_every_fence_begins_a_line():
    """Neither indented nor of tildes or more backticks: such a block would not be seen here."""
    for path in PAGES:
        assert re.findall(r"^[ \t>*-]+```|^~~~|^````", page(path), re.MULTILINE) == [], path


def test_no_document_is_left_out():
    """But the changelog, every Markdown file of the checkout that is not somebody else's."""
    folders = ("app", "bench", "docs", "image", "k8s", "streaming", "tests", "tools")
    found = [*ROOT.glob("*.md"), *(path for folder in folders for path in (ROOT / folder).rglob("*.md"))]
    assert {path.relative_to(ROOT).as_posix() for path in found} - {"CHANGELOG.md"} == set(PAGES)
