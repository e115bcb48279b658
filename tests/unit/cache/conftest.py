"""A cache of one's own."""

from __future__ import annotations

import pytest

from streaming.options import CacheOptions


@pytest.fixture
def options(tmp_path) -> CacheOptions:
    """An empty folder, no reserve."""
    return CacheOptions(folder=str(tmp_path / "cache"), reserve_ratio=0.0)
