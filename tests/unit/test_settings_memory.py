"""The host memory limit: what it leaves of lanes and chunks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from app.errors import UsageError
from app.settings import load
from app.settings.kinds import MIB
from app.settings.memory import fit_memory
from streaming.options import CacheOptions, HedgingOptions, PipelineOptions
from tests.unit.configurations import URI, config_file

WISHES = st.builds(
    PipelineOptions,
    lanes=st.integers(1, 256),
    chunk_bytes=st.integers(1, 256).map(lambda mib: mib * MIB),
    hedging=st.builds(HedgingOptions, budget_ratio=st.sampled_from([0.0, 0.05])),
)


@given(WISHES, st.sampled_from([4 * MIB, 6 * MIB]) | st.integers(1, 1 << 38))
def test_memory_limit_is_never_exceeded(wish, limit_bytes):
    """Chunks fit the limit, nothing grows, chunks shrink only with one lane left, and less than a lane needs fails."""
    least_chunks = 6 if wish.second_reads else 4  # a lane's, a writer's, a second read's
    if limit_bytes < least_chunks * MIB:
        with pytest.raises(UsageError, match=f"needs {least_chunks} MiB"):
            fit_memory(wish, limit_bytes)
        return
    fitted = fit_memory(wish, limit_bytes)
    assert fitted.chunks_held * fitted.chunk_bytes <= limit_bytes
    assert 1 <= fitted.lanes <= wish.lanes
    assert MIB <= fitted.chunk_bytes <= wish.chunk_bytes
    assert fitted.chunk_bytes == wish.chunk_bytes or fitted.lanes == 1
    assert structs.replace(fitted, lanes=wish.lanes, chunk_bytes=wish.chunk_bytes) == wish
    # Maximal: one more lane, or one more MiB, would not fit or was not asked for.
    if fitted.chunk_bytes == wish.chunk_bytes:
        more = structs.replace(fitted, lanes=fitted.lanes + 1)
        assert fitted.lanes == wish.lanes or more.chunks_held * more.chunk_bytes > limit_bytes
    else:
        assert least_chunks * (fitted.chunk_bytes + MIB) > limit_bytes


@given(WISHES, st.sampled_from([-1, 0]))
def test_no_memory_limit_reduces_nothing(wish, limit):
    """-1 and 0 leave lanes and chunks as they were asked for."""
    assert fit_memory(wish, limit) == wish


def test_second_reads_are_a_part_of_the_memory():
    """Two chunks for each that may be under way beside those of the lanes; none where nothing is read twice."""
    once = HedgingOptions(budget_ratio=0)
    for lanes, second_reads in {1: 1, 8: 1, 16: 2, 64: 8}.items():
        pipeline = PipelineOptions(lanes=lanes)
        assert pipeline.second_reads == second_reads
        assert pipeline.chunks_held - structs.replace(pipeline, hedging=once).chunks_held == 2 * second_reads


def test_reduction_is_noticed():
    """What the memory limit takes away is said in a notice."""
    settings = load([URI, "--memory-limit", "160MiB"], {})
    assert settings.storage.pipeline_options() == PipelineOptions(lanes=2, chunk_bytes=16 * MIB)
    assert settings.notices == (
        "storage.memory_limit_bytes=167772160 reduces 16 lanes with chunks of 16 MiB to 2 with 16 MiB",
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
