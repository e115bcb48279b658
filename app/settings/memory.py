"""How many lanes and how large a chunk fit a limit of host memory. Pure arithmetic."""

from __future__ import annotations

from app.errors import UsageError
from app.settings.kinds import MIB, shown_bytes
from streaming.options import PipelineOptions

UNLIMITED = -1
LEAST = 0


def fit_memory(lanes: int, chunk_bytes: int, memory_limit_bytes: int) -> PipelineOptions:
    """The most of `lanes` and `chunk_bytes` whose memory (`PipelineOptions.chunks_held`) stays within the limit.

    Lanes go first, because a smaller chunk costs a request more per byte; chunks shrink to whole MiB, and
    only once a single lane is left. A limit of -1 is none, and 0 is the least that the lanes asked for need:
    neither reduces anything.

    Raises:
        UsageError: Not even one lane with chunks of 1 MiB fits.
    """
    if memory_limit_bytes in (UNLIMITED, LEAST):
        return PipelineOptions(lanes=lanes, chunk_bytes=chunk_bytes)
    for fewer in range(lanes, 0, -1):
        fitted = PipelineOptions(lanes=fewer, chunk_bytes=chunk_bytes)
        if fitted.chunks_held * chunk_bytes <= memory_limit_bytes:
            return fitted
    least = PipelineOptions(lanes=1).chunks_held
    if memory_limit_bytes < least * MIB:
        raise UsageError(
            f"storage.memory_limit_bytes: {shown_bytes(memory_limit_bytes)} is too little: "
            f"one lane with chunks of 1 MiB needs {least} MiB; use -1 for no limit"
        )
    return PipelineOptions(lanes=1, chunk_bytes=memory_limit_bytes // least // MIB * MIB)
