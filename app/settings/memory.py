"""How many lanes and how large a chunk fit a limit of host memory. Pure arithmetic."""

from __future__ import annotations

from app.errors import UsageError
from app.settings.kinds import MIB, shown_bytes
from streaming.options import PipelineOptions

UNLIMITED = -1
LEAST = 0
# A chunk arrives in pieces and is joined, so for a moment a lane holds it twice; a GPU's lane has two slots besides.
CHUNKS_PER_LANE = 4


def fit_memory(lanes: int, chunk_bytes: int, memory_limit_bytes: int) -> PipelineOptions:
    """The most of `lanes` and `chunk_bytes` whose memory (lanes x 4 x chunk) stays within the limit.

    Lanes go first, because a smaller chunk costs a request more per byte; chunks shrink to whole MiB, and
    only once a single lane is left. A limit of -1 is none, and 0 is the least that the lanes asked for need:
    neither reduces anything.

    Raises:
        UsageError: Not even one lane with chunks of 1 MiB fits.
    """
    if memory_limit_bytes in (UNLIMITED, LEAST):
        return PipelineOptions(lanes=lanes, chunk_bytes=chunk_bytes)
    fitting_lanes = min(lanes, memory_limit_bytes // (CHUNKS_PER_LANE * chunk_bytes))
    if fitting_lanes >= 1:
        return PipelineOptions(lanes=fitting_lanes, chunk_bytes=chunk_bytes)
    fitting_chunk_bytes = memory_limit_bytes // CHUNKS_PER_LANE // MIB * MIB
    if fitting_chunk_bytes == 0:
        raise UsageError(
            f"storage.memory_limit_bytes: {shown_bytes(memory_limit_bytes)} is too little: "
            "one lane with chunks of 1 MiB needs 4 MiB; use -1 for no limit"
        )
    return PipelineOptions(lanes=1, chunk_bytes=fitting_chunk_bytes)
