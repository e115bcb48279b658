"""The commands of docs/image.md, read by the programs that it says take the same words."""

from __future__ import annotations

import pytest

from tests.documents.pages import texts
from tests.documents.stand_ins import calls_of
from tools.containers import ContainersError, containers

pytestmark = pytest.mark.image
PROGRAMS = {"build": "buildah", "run": "podman"}


def test_buildah_and_podman_take_the_same_words(tmp_path):
    """With --help they do nothing but parse, and a flag that they do not have is an error all the same."""
    (block,) = texts("docs/image.md", "The image", "bash")
    (secret,) = texts("docs/image.md", "An index of your own", "bash")
    called = calls_of(f"{block}{secret}", ("docker", "git"), tmp_path)
    calls = [words for program, *words in called if program == "docker"]
    assert {verb for verb, *_ in calls} == PROGRAMS.keys()
    with containers() as tools:
        for verb, *words in calls:
            tools.run(PROGRAMS[verb], verb, "--help", *words)
            with pytest.raises(ContainersError, match="unknown flag: --no-such-flag"):
                tools.run(PROGRAMS[verb], verb, "--help", "--no-such-flag", *words)
