"""The image for processors, built once, and what runs it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tools.containers import Containers, containers
from tools.image import build


@pytest.fixture(scope="session")
def podman() -> Iterator[Containers]:
    """Podman, with the image of this checkout."""
    with containers() as tools:
        build(tools)
        yield tools
