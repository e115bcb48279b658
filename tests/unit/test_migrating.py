"""docs/migrating.md: every row of its tables is tried."""

from __future__ import annotations

import re
import shlex
from typing import NamedTuple

import pytest

from app.api.probes import PROBES
from app.errors import UsageError
from app.settings import load
from app.settings.sources import LOADER_FLAG
from tests.coldstream import ROOT
from tests.unit.configurations import URI, config_file

GUIDE = (ROOT / "docs" / "migrating.md").read_text()


class Case(NamedTuple):
    """A row: its section, theirs, ours and what differs."""

    section: str
    theirs: str
    ours: str
    differs: str


def rows(kind):
    """The rows of the tables in sections of that kind, without the headers."""
    found = []
    for part in GUIDE.split("\n## ")[1:]:
        section, _, text = part.partition("\n")
        lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
        if kind in section:
            found += [Case(section, *(cell.strip() for cell in line.strip("|").split(" | "))) for line in lines]
    return found


def words(code):
    """A command line's words, from a cell with one piece of code."""
    (text,) = re.findall(r"`(.*?)`", code)
    return shlex.split(text)


def environ(code):
    """Variables, from such a cell."""
    return dict(word.split("=", 1) for word in words(code))


def without_uri(argv):
    """The URI as an argument, where no flag gives it."""
    return argv if "--model" in argv or "--model-path" in argv else [URI, *argv]


FLAGS = [*rows("flags"), *rows("extra-config")]
VARIABLES = rows("Variables")


@pytest.mark.parametrize("case", FLAGS, ids=lambda case: case.theirs.strip("`"))
def test_a_flag_is_what_its_row_says(case):
    """Same is accepted without a word, none is refused, and another name is accepted where theirs is refused."""
    theirs = without_uri(words(case.theirs))
    if case.ours == "same":
        notices = load(theirs, {}).notices
        assert bool(notices) == ("no effect" in case.differs), notices
    elif case.ours == "none":
        with pytest.raises(UsageError):
            load(theirs, {})
    else:
        ours = load(without_uri(words(case.ours)), {})
        if LOADER_FLAG in theirs:
            assert ours.storage == load(theirs, {}).storage
        else:
            with pytest.raises(UsageError):
                load(theirs, {})


@pytest.mark.parametrize("case", VARIABLES, ids=lambda case: case.theirs.strip("`"))
def test_a_variable_is_what_its_row_says(case):
    """Same changes what it should, any other changes nothing, and the name of ours changes something."""
    default = load([URI], {})
    theirs = load([URI], environ(case.theirs))
    assert (theirs != default) == (case.ours == "same")
    if case.ours not in ("same", "none"):
        assert load([URI], environ(case.ours)) != default


def test_every_row_is_of_a_kind():
    """And there are many."""
    assert len(FLAGS) > 50
    assert len(VARIABLES) > 15
    assert all(case.ours in ("same", "none") or case.ours.startswith("`") for case in [*FLAGS, *VARIABLES])


def test_every_probe_of_ours_exists():
    """In the last table's second column; tests/documents looks at all other names."""
    named = set(re.findall(r"`(/\w+)`", " ".join(case.ours for case in rows("Around"))))
    assert len(named) > 2
    assert named <= PROBES.keys()


def test_their_file_is_refused_by_its_first_key(tmp_path):
    """It has flags without sections, of which none is taken for something else."""
    text = "model: az://models/llama-8b\nmax-model-len: 8192\n"
    with pytest.raises(UsageError, match="model: expected keys with values"):
        load(["--config", config_file(tmp_path, text)], {})
    with pytest.raises(UsageError, match="unknown section 'max-model-len'"):
        load(["--config", config_file(tmp_path, text.partition("\n")[2])], {})


def test_an_underscore_is_answered_with_the_dash():
    """Their parser takes both; here the error says which one it is."""
    with pytest.raises(UsageError, match=r"did you mean --max-model-len\?"):
        load([URI, "--max_model_len", "8192"], {})
