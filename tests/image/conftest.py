"""The image for processors, built once, and what runs it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.image.private_index import PrivateIndex, private_index
from tools.containers import Containers, containers
from tools.image import build, pip_settings


@pytest.fixture(scope="session")
def own_index() -> Iterator[PrivateIndex]:
    """An index of who builds the image, whose password is a secret of the build."""
    with private_index() as index:
        yield index


@pytest.fixture(scope="session")
def podman(own_index: PrivateIndex) -> Iterator[Containers]:
    """Podman, with the image of this checkout."""
    settings = pip_settings()
    settings["extra-index-url"] = f"{settings.get('extra-index-url', '')} {own_index.address}".strip()
    with containers() as tools:
        build(tools, settings=settings)
        yield tools
