"""The log says of a load which path its bytes took, what of them nobody has verified, and what a cache has saved."""

from __future__ import annotations

import pytest

from streaming.options import DIRECT_GPU, HOST_STAGING, CacheOptions
from tests.load_lines import UNPINNED, load_lines


def test_the_line_that_proves_the_path():
    """Source, device, size, rate, and how many bytes were verified."""
    assert load_lines(verified_bytes=2_000_000) == [
        "streamed 7 tensors in 1 shards, 2000000 bytes, az://models/m -> cuda in 0.50 s (0.00 GB/s); "
        "2000000 bytes verified, 0 unverified"
    ]


def test_weights_that_go_to_disk_say_so():
    """And that their bytes are compared with nothing; there is no cache beside the disk."""
    (line,) = load_lines(HOST_STAGING, cache=CacheOptions(folder="/cache"), unverified_bytes=2_000_000)
    assert line.startswith("staged 7 tensors")
    assert "az://models/m -> disk in" in line
    assert line.endswith("2000000 unverified (host-staging compares headers and metadata only)")


@pytest.mark.parametrize("strategy", [DIRECT_GPU, HOST_STAGING])
def test_a_checkpoint_without_digests_says_what_writes_some(strategy):
    """However its weights came."""
    (line,) = load_lines(strategy, has_manifest=False, unverified_bytes=2_000_000)
    assert line.endswith("0 bytes verified, 2000000 unverified (no manifest: `coldstream push` writes one)")


def test_a_cache_says_what_it_saved():
    """Of all that was read, from it or not."""
    _, line = load_lines(cache=CacheOptions(folder="/cache"), cache_hit_bytes=1_500_000, cache_miss_bytes=500_000)
    assert line == "cache: 1500000 of 2000000 bytes (75.0 %) came from /cache"


def test_a_source_that_pins_nothing_is_named():
    """The comparison is ours then, not the service's."""
    warning, _ = load_lines(version=UNPINNED)
    assert warning == (
        "the source gives no strong ETag (b.safetensors): size, ETag and date of every answer are compared"
    )
