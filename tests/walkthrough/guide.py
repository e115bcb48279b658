"""docs/aks.md as scripts, whole and in parts, and what a server's log has to say for it.

Knows no machine to run them on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

from streaming.options import DIRECT_GPU
from tests.coldstream import ROOT
from tests.load_lines import load_lines
from tests.walkthrough.blocks import script
from tests.walkthrough.machine import Run
from tests.walkthrough.world import Call, World

GUIDE = (ROOT / "docs" / "aks.md").read_text()
UP = script(GUIDE, without=("Pause", "Tear down"))
PAUSE = script(GUIDE, ("Pause",))
ALL = script(GUIDE)
DOWN = script(GUIDE, ("Variables", "Tear down"))
TOKEN = "s3cret-of-the-hub"
# What the blocks of a later section need of a session.
BEFORE = ("Variables", "Subscription", "Cluster", "Identities", "Image")


class Walk(NamedTuple):
    """A run, and the world behind it."""

    run: Run
    world: World


def proof(strategy: str = DIRECT_GPU) -> str:
    """The line of the server's log that proves the path."""
    (line,) = load_lines(strategy)
    return json.dumps({"level": "info", "message": line})


def replaced(text: str, *changes: Sequence[str]) -> str:
    """The text with every change made; each has to change something."""
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    return text


def quick(text: str) -> str:
    """The same with loops that give up soon."""
    return re.sub(r"retry \d+ ", "retry 6 ", text)


def flags_by_command(calls: Sequence[Call]) -> dict[str, set[str]]:
    """The flags that kubectl's commands were given."""
    used: dict[str, set[str]] = {}
    for call in calls:
        if call.program == "kubectl":
            words = [word for word in call.argv if not word.startswith("-")]
            verb = next(word for word in words if word not in ("coldstream", "kube-system"))
            path = {"rollout": " ".join(words[-2:-1]), "create": "secret generic"}.get(verb, "")
            flags = {word.partition("=")[0] for word in call.argv if word.startswith("--")}
            used.setdefault(f"{verb} {path}".strip(), set()).update(flags)
    return used
