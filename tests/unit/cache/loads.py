"""One load through the cache, of blobs whose bytes are known.

Takes the cache's options, gives what the source was asked for and what was told.
"""

from __future__ import annotations

import asyncio
import random
import time

from hypothesis import strategies as st

from streaming.cached import Cached
from streaming.counters import FetchCounters
from streaming.messages import BlobVersion
from streaming.options import AzureOptions, CacheOptions
from streaming.uri import parse

LOCATION = parse("http://host/model", AzureOptions())
SIZE_BYTES = 5000
VERSIONS = tuple(BlobVersion(name, SIZE_BYTES, f'"{tag}"') for name in "ab" for tag in (1, 2))
BYTES = {version: random.Random(str(version)).randbytes(SIZE_BYTES) for version in VERSIONS}
EXTENTS = st.tuples(st.integers(0, SIZE_BYTES - 1), st.integers(1, SIZE_BYTES)).map(
    lambda pair: (min(pair), max(pair) + (pair[0] == pair[1]))
)


class Oracle:
    """A source that counts what it is asked for."""

    def __init__(self) -> None:
        self.asked_bytes = 0

    async def read_range(self, version: BlobVersion, start: int, end: int) -> bytes:
        """As a source."""
        self.asked_bytes += end - start
        return BYTES[version][start:end]


class OneLoad:
    """A decorator as a loader has it, and what it told."""

    def __init__(self, options: CacheOptions, versions=VERSIONS):
        self.oracle, self.counters, self.fallbacks = Oracle(), FetchCounters(), []
        self.cached = Cached(self.oracle, LOCATION, options, self.counters, lambda *told: self.fallbacks.append(told))
        self.cached.expect(versions)

    def settle(self) -> None:
        """Wait until nothing is being written, so that the same steps do the same."""
        while self.cached._writing._held_bytes:
            time.sleep(0.001)

    def read(self, version: BlobVersion, start: int, end: int) -> None:
        """It is right, wherever it comes from."""
        assert bytes(asyncio.run(self.cached.read_range(version, start, end))) == BYTES[version][start:end]


def loaded(options: CacheOptions, *extents: tuple[int, int], version: BlobVersion = VERSIONS[0]) -> OneLoad:
    """A load that reads these ranges and ends."""
    load = OneLoad(options, (version,))
    for start, end in extents:
        load.read(version, start, end)
    load.cached.finish()
    return load
