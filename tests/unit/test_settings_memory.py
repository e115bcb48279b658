"""The host memory limit: what it leaves of lanes and chunks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import UsageError
from app.settings import load
from app.settings.kinds import MIB
from app.settings.memory import fit_memory
from streaming.options import CacheOptions, PipelineOptions
from tests.unit.configurations import URI, config_file


@given(
    lanes=st.integers(1, 256),
    chunk_mib=st.integers(1, 256),
    limit_bytes=st.just(4 * MIB) | st.integers(1, 1 << 38),
)
def test_memory_limit_is_never_exceeded(lanes, chunk_mib, limit_bytes):
    """Chunks fit the limit, nothing grows, chunks shrink only with one lane left, and less than a lane and a writer need fails."""
    chunk_bytes = chunk_mib * MIB
    if limit_bytes < 4 * MIB:
        with pytest.raises(UsageError):
            fit_memory(lanes, chunk_bytes, limit_bytes)
        return
    fitted = fit_memory(lanes, chunk_bytes, limit_bytes)
    assert fitted.chunks_held * fitted.chunk_bytes <= limit_bytes
    assert 1 <= fitted.lanes <= lanes
    assert MIB <= fitted.chunk_bytes <= chunk_bytes
    assert fitted.chunk_bytes == chunk_bytes or fitted.lanes == 1
    # Maximal: one more lane, or one more MiB, would not fit or was not asked for.
    if fitted.chunk_bytes == chunk_bytes:
        assert fitted.lanes == lanes or PipelineOptions(lanes=fitted.lanes + 1).chunks_held * chunk_bytes > limit_bytes
    else:
        assert 4 * (fitted.chunk_bytes + MIB) > limit_bytes


@given(lanes=st.integers(1, 256), chunk_mib=st.integers(1, 256), limit=st.sampled_from([-1, 0]))
def test_no_memory_limit_reduces_nothing(lanes, chunk_mib, limit):
    """-1 and 0 leave lanes and chunks as they were asked for."""
    assert fit_memory(lanes, chunk_mib * MIB, limit) == PipelineOptions(lanes=lanes, chunk_bytes=chunk_mib * MIB)


def test_reduction_is_noticed():
    """What the memory limit takes away is said in a notice."""
    settings = load([URI, "--memory-limit", "128MiB"], {})
    assert settings.storage.pipeline_options() == PipelineOptions(lanes=2, chunk_bytes=16 * MIB)
    assert settings.notices == (
        "storage.memory_limit_bytes=134217728 reduces 16 lanes with chunks of 16 MiB to 2 with 16 MiB",
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], None),
        (["--cache-dir", "/nvme"], CacheOptions(folder="/nvme")),
        (["--cache-dir", "/nvme", "--cache-size", "8GiB"], CacheOptions(folder="/nvme", max_bytes=8 << 30)),
        (["--cache-dir", "/nvme", "--memory-limit", "128MiB"], CacheOptions(folder="/nvme", queue_bytes=32 * MIB)),
    ],
)
def test_the_cache_is_where_it_is_named(words, expected):
    """A folder turns it on; of a memory limit, a quarter waits for the disk."""
    assert load([URI, *words], {}).storage.cache_options() == expected


@pytest.mark.parametrize(("enabled", "folder"), [("true", "/var/cache/coldstream"), ("false", None)])
def test_the_cache_is_turned_on_and_off_in_the_file(tmp_path, enabled, folder):
    """Without a folder it is in the usual one, and false is stronger than a folder."""
    words = ["--config", config_file(tmp_path, f"storage:\n  local_nvme_cache_enabled: {enabled}\n")]
    words += [] if folder else ["--cache-dir", "/nvme"]
    options = load([URI, *words], {}).storage.cache_options()
    assert (options and options.folder) == folder


def test_what_waits_for_the_disk_counts_against_the_memory_limit():
    """Chunks get what is left of it."""
    settings = load([URI, "--memory-limit", "768MiB", "--cache-dir", "/nvme"], {}).storage
    pipeline, cache = settings.pipeline_options(), settings.cache_options()
    assert pipeline.chunks_held * pipeline.chunk_bytes + cache.queue_bytes <= 768 * MIB
    assert pipeline.lanes < load([URI, "--memory-limit", "768MiB"], {}).storage.pipeline_options().lanes
