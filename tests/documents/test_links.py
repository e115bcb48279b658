"""Every link of a document leads somewhere in the checkout."""

from __future__ import annotations

import re

import pytest

from tests.coldstream import ROOT
from tests.documents.pages import PAGES, page, prose


def anchors(path):
    """What links may name of a document: its headings as GitHub writes them."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES)
def test_links_lead_somewhere(path):
    """To a file, and to a heading where they name one."""
    for target in re.findall(r"\]\((?!http)([^)]+)\)", page(path)):
        file, _, anchor = target.partition("#")
        there = ((ROOT / path).parent / file).resolve() if file else ROOT / path
        assert there.exists(), target
        assert not anchor or anchor in anchors(there.relative_to(ROOT).as_posix()), target
