"""Machines to walk on: in a world that has nothing, or has what a first run made; and five runs that were made once."""

from __future__ import annotations

import copy

import pytest

from tests.walkthrough.guide import ALL, DOWN, PAUSE, TOKEN, UP, Walk, proof
from tests.walkthrough.machine import machine
from tests.walkthrough.world import World


@pytest.fixture
def fresh(tmp_path):
    """A machine in a world that has nothing yet."""
    with machine(tmp_path / "machine", World(proof())) as made:
        yield made


@pytest.fixture(scope="session")
def walks(tmp_path_factory):
    """Runs in one world: up, up again, and paused, twice; everything, everything again from nothing, down once more."""
    with machine(tmp_path_factory.mktemp("walk") / "machine", World(proof())) as made:
        return [
            Walk(made.run(text, HF_TOKEN=TOKEN), copy.deepcopy(made.world))
            for text in (UP, UP, UP + PAUSE + PAUSE, ALL, ALL, DOWN)
        ]


@pytest.fixture
def again(walks, tmp_path):
    """A machine in the world behind the first run."""
    with machine(tmp_path / "machine", copy.deepcopy(walks[0].world)) as made:
        yield made
