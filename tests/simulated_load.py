"""One load's own readers in simulated time, as `streaming.reading` puts them together, and the lanes that ask them."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from streaming.counters import FetchCounters
from streaming.messages import LoadRequest, Origin
from streaming.options import MIB, PipelineOptions, SourceOptions
from streaming.reading import Reading
from tests.simulated_time import VERSION, now_s


class SimulatedClock:
    """What `streaming.retrying` asks for the time."""

    monotonic = staticmethod(now_s)


async def land(
    source: Any, reads: int, lanes: int, options: SourceOptions, range_bytes: int = 16 * MIB
) -> FetchCounters:
    """Read so many ranges, each lane one after the other.

    Raises:
        ExceptionGroup: Of a read that was given up; the others are cancelled.
    """
    counters = FetchCounters()
    request = LoadRequest(
        origin=Origin(arena_id="simulated"), uri="simulated", source=options, pipeline=PipelineOptions(lanes=lanes)
    )
    ranges = Reading(source, request, counters, tell=lambda _: None).ranges()
    todo = itertools.count()

    async def lane() -> None:
        while (number := next(todo)) < reads:
            await ranges.read_range(VERSION, number * range_bytes, (number + 1) * range_bytes)

    async with asyncio.TaskGroup() as group:
        for _ in range(lanes):
            group.create_task(lane())
    return counters
