"""How many lanes and how large a chunk fit a limit of host memory. Pure arithmetic."""

from __future__ import annotations

from msgspec import structs

from app.errors import UsageError
from app.settings.kinds import MIB, shown_bytes
from streaming.options import PipelineOptions

UNLIMITED = -1
LEAST = 0


def fit_memory(wish: PipelineOptions, memory_limit_bytes: int) -> PipelineOptions:
    """The most of a wish's lanes and chunks whose memory (`PipelineOptions.chunks_held`) stays within the limit.

    Lanes go first, because a smaller chunk costs a request more per byte; chunks shrink to whole MiB, and
    only once a single lane is left. A limit of -1 is none, and 0 is the least that the lanes asked for need:
    neither reduces anything.

    Raises:
        UsageError: Not even one lane with chunks of 1 MiB fits.
    """
    if memory_limit_bytes in (UNLIMITED, LEAST):
        return wish
    for fewer in range(wish.lanes, 0, -1):
        fitted = structs.replace(wish, lanes=fewer)
        if fitted.chunks_held * fitted.chunk_bytes <= memory_limit_bytes:
            return fitted
    least = fitted.chunks_held
    if memory_limit_bytes < least * MIB:
        raise UsageError(
            f"storage.memory_limit_bytes: {shown_bytes(memory_limit_bytes)} is too little: "
            f"one lane with chunks of 1 MiB needs {least} MiB; use -1 for no limit"
        )
    return structs.replace(fitted, chunk_bytes=memory_limit_bytes // least // MIB * MIB)
