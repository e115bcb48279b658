"""The ceiling of the network side: `python -m bench.gpu.landing_obstore URL THREADS CHUNK_BYTES`.

The ranged GETs that our loader's plan makes, by as many threads, through obstore alone; bodies are dropped.
"""

from __future__ import annotations

import queue
import sys
import threading
from typing import Any

import obstore
from obstore.store import HTTPStore

from bench.gpu.landing_curve import Arrival, figures, tell
from streaming.clock import boottime_s, exec_time_s
from streaming.describe import describe
from streaming.messages import Chunk, Described, Plan
from streaming.options import SourceOptions
from streaming.plan import plan_load
from streaming.source import open_source
from tests.loader import ORIGIN, as_stored


def plan_of(url: str, chunk_bytes: int) -> Plan:
    """What the loader would plan."""
    found = describe(open_source(url, SourceOptions()))
    described = Described(origin=ORIGIN, files=found.files, entries=found.entries, versions=found.versions)
    return plan_load(found.entries, found.versions, as_stored(described), chunk_bytes=chunk_bytes)


def fetch(url: str, plan: Plan, threads: int) -> list[Arrival]:
    """Read everything once; when each body was complete."""
    store = HTTPStore.from_url(url, client_options={"allow_http": True})
    todo: queue.SimpleQueue[Chunk | None] = queue.SimpleQueue()
    for chunk in [*plan.chunks, *[None] * threads]:
        todo.put(chunk)
    arrivals: queue.SimpleQueue[Arrival] = queue.SimpleQueue()

    def run() -> None:
        while (chunk := todo.get()) is not None:
            nbytes = len(obstore.get(store, chunk.shard, options={"range": (chunk.start, chunk.end)}).bytes())
            arrivals.put(Arrival(boottime_s(), nbytes))

    workers = [threading.Thread(target=run) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return [arrivals.get() for _ in range(arrivals.qsize())]


def main(url: str, threads: int, chunk_bytes: int) -> dict[str, Any]:
    """Plan, then fetch.

    Raises:
        RuntimeError: A read failed, so that there is nothing to compare with.
    """
    plan = plan_of(url, chunk_bytes)
    planned_s = boottime_s()
    arrivals = fetch(url, plan, threads)
    landed_s = boottime_s()
    measured = figures(exec_s=exec_time_s(), planned_s=planned_s, landed_s=landed_s, arrivals=arrivals, lanes=threads)
    if measured["bytes"] != plan.fetch_bytes:
        raise RuntimeError(f"{measured['bytes']} of {plan.fetch_bytes} bytes came")
    return measured


if __name__ == "__main__":
    url, threads, chunk_bytes = sys.argv[1:]
    tell(main(url, int(threads), int(chunk_bytes)))
