"""The host memory limit: what it leaves of lanes and chunks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import UsageError
from app.settings import load
from app.settings.kinds import MIB
from app.settings.memory import fit_memory
from streaming.options import PipelineOptions
from tests.unit.configurations import URI


@given(
    lanes=st.integers(1, 256),
    chunk_mib=st.integers(1, 256),
    limit_bytes=st.sampled_from([0, MIB]) | st.integers(1, 1 << 38),
)
def test_memory_limit_is_never_exceeded(lanes, chunk_mib, limit_bytes):
    """Slots fit the limit, nothing grows, chunks shrink only with one lane left, and only < 1 MiB fails."""
    chunk_bytes = chunk_mib * MIB
    allowed_bytes = limit_bytes or lanes * chunk_bytes
    if allowed_bytes < MIB:
        with pytest.raises(UsageError):
            fit_memory(lanes, chunk_bytes, limit_bytes)
        return
    fitted = fit_memory(lanes, chunk_bytes, limit_bytes)
    assert fitted.lanes * fitted.chunk_bytes <= allowed_bytes
    assert 1 <= fitted.lanes <= lanes
    assert MIB <= fitted.chunk_bytes <= chunk_bytes
    assert fitted.chunk_bytes == chunk_bytes or fitted.lanes == 1
    # Maximal: one more lane, or one more MiB, would not fit or was not asked for.
    if fitted.chunk_bytes == chunk_bytes:
        assert fitted.lanes == lanes or (fitted.lanes + 1) * chunk_bytes > allowed_bytes
    else:
        assert (fitted.chunk_bytes + MIB) > allowed_bytes


@given(lanes=st.integers(1, 256), chunk_mib=st.integers(1, 256))
def test_no_memory_limit_reduces_nothing(lanes, chunk_mib):
    """-1 leaves lanes and chunks as they were asked for."""
    assert fit_memory(lanes, chunk_mib * MIB, -1) == PipelineOptions(lanes=lanes, chunk_bytes=chunk_mib * MIB)


def test_reduction_is_noticed():
    """What the memory limit takes away is said in a notice."""
    settings = load([URI, "--memory-limit", "64MiB"], {})
    assert settings.storage.pipeline_options() == PipelineOptions(lanes=4, chunk_bytes=16 * MIB)
    assert settings.notices == (
        "storage.memory_limit_bytes=67108864 reduces 8 lanes with chunks of 16 MiB to 4 with 16 MiB",
    )
