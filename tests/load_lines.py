"""What the server's log says of one load: two megabytes in half a second, of seven tensors."""

from __future__ import annotations

import logging

from app import load_log
from streaming.counters import FetchCounters
from streaming.messages import BlobVersion, Chunk, Described, LoadRequest, Plan
from streaming.options import DIRECT_GPU, CacheOptions, PipelineOptions, SourceOptions
from tests.loader import ORIGIN

PINNED = BlobVersion("a.safetensors", 2_000_000, '"1"')
UNPINNED = BlobVersion("b.safetensors", 2_000_000, 'W/"2"')
PLAN = Plan(2_000_000, {}, (Chunk(0, PINNED.name, 0, 2_000_000, ()),), (PINNED,))


def load_lines(
    strategy: str = DIRECT_GPU,
    *,
    cache: CacheOptions | None = None,
    version: BlobVersion = PINNED,
    has_manifest: bool = True,
    **counters: int,
) -> list[str]:
    """The lines, in their order."""
    request = LoadRequest(
        origin=ORIGIN,
        uri="az://models/m",
        strategy=strategy,
        source=SourceOptions(),
        pipeline=PipelineOptions(),
        cache=cache,
    )
    log, heard = load_log.LoadLog(request, "cuda"), _Heard()
    logger, level = load_log.logger, load_log.logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(heard)
    try:
        log.described(Described(origin=ORIGIN, files={}, entries=(), versions=(version,), has_manifest=has_manifest))
        log.landed(PLAN, FetchCounters(**counters), tensors=7, seconds=0.5)
    finally:
        logger.removeHandler(heard)
        logger.setLevel(level)
    return heard.lines


class _Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
