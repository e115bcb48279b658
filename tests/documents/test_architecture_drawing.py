"""The drawing at the top of docs/architecture.md has the processes that there are."""

from __future__ import annotations

import re

from app.settings import parse
from streaming import messages
from tests.coldstream import ROOT
from tests.documents.pages import texts


def test_the_drawing_is_of_this_program():
    """Its command line is taken, its three packages start as processes, and its messages are sent."""
    (drawing,) = texts("docs/architecture.md", "Architecture", "text")
    (line,) = re.findall(r"t=0 +coldstream (.*)", drawing)
    assert parse(line.split(), {}).name == "serve"
    packages = set(re.findall(r"\b(app(?:\.engine)?|streaming) \(", drawing))
    assert packages == {"app", "app.engine", "streaming"}
    for package in packages:
        assert (ROOT / package.replace(".", "/") / "__main__.py").is_file()
    said = set(re.findall(r"\b[A-Z][a-z]+\b", drawing)) - {"FastAPI"}
    for name in said & {"Described", "Layout", "Landed"}:
        assert any(each.endswith(name) for each in dir(messages)), name
    assert {"Described", "Layout", "Landed"} <= said
