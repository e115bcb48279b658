"""The ceiling of the network side: `python -m bench.gpu.landing_obstore URL CONCURRENCY CHUNK_BYTES`.

The ranged GETs that our loader's plan makes, as many at a time, through obstore alone; bodies are dropped.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import obstore
from obstore.store import HTTPStore

from bench.gpu.landing_curve import Arrival, figures, tell
from streaming.clock import boottime_s, exec_time_s
from streaming.describe import describe
from streaming.messages import Described, Plan
from streaming.options import SourceOptions
from streaming.plan import plan_load
from streaming.retrying import open_retrying
from tests.loader import ORIGIN, as_stored


def plan_of(url: str, chunk_bytes: int) -> Plan:
    """What the loader would plan."""
    found = describe(open_retrying(url, SourceOptions()))
    described = Described(origin=ORIGIN, files=found.files, entries=found.entries, versions=found.versions)
    return plan_load(found.entries, found.versions, as_stored(described), chunk_bytes=chunk_bytes)


async def fetch(url: str, plan: Plan, concurrency: int) -> list[Arrival]:
    """Read everything once, `concurrency` ranges at a time; when each body was complete."""
    store = HTTPStore.from_url(url, client_options={"allow_http": True})
    todo = iter(plan.chunks)
    arrivals: list[Arrival] = []

    async def run() -> None:
        for chunk in todo:
            answer = await obstore.get_async(store, chunk.shard, options={"range": (chunk.start, chunk.end)})
            nbytes = len(await answer.bytes_async())
            arrivals.append(Arrival(boottime_s(), nbytes))

    await asyncio.gather(*(run() for _ in range(concurrency)))
    return arrivals


def main(url: str, concurrency: int, chunk_bytes: int) -> dict[str, Any]:
    """Plan, then fetch.

    Raises:
        RuntimeError: A read failed, so that there is nothing to compare with.
    """
    plan = plan_of(url, chunk_bytes)
    planned_s = boottime_s()
    arrivals = asyncio.run(fetch(url, plan, concurrency))
    landed_s = boottime_s()
    measured = figures(
        exec_s=exec_time_s(),
        planned_s=planned_s,
        landed_s=landed_s,
        arrivals=arrivals,
        lanes=concurrency,
        cpu_s=time.process_time(),
    )
    if measured["bytes"] != plan.fetch_bytes:
        raise RuntimeError(f"{measured['bytes']} of {plan.fetch_bytes} bytes came")
    return measured


if __name__ == "__main__":
    url, concurrency, chunk_bytes = sys.argv[1:]
    tell(main(url, int(concurrency), int(chunk_bytes)))
