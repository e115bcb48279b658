"""How bytes landed over time, as figures; and how a measuring process tells them to the benchmark.

Takes who landed how much when (seconds of CLOCK_BOOTTIME), gives rates in GB/s (decimal). Knows no loader.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, NoReturn

from bench.gpu.marks import RESULT_PREFIX

_TENTHS = 10


class Arrival(NamedTuple):
    """Bytes that were seen to have landed at a time."""

    time_s: float
    nbytes: int


class Curve:
    """Bytes landed by time.

    Lanes that share a link fairly end their chunks together, so that bytes seem to land in bursts. Each arrival
    is therefore spread over the time since its lane's last one, which `lanes` arrivals ago is about when.

    Args:
        start_s: When the first byte was asked for.
        arrivals: What landed, in order.
        lanes: How many arrive at once; 1 where they follow each other.
    """

    def __init__(self, start_s: float, arrivals: Sequence[Arrival], lanes: int):
        self.nbytes = sum(arrival.nbytes for arrival in arrivals)
        self._start_s = start_s
        in_order = sorted(arrivals)
        since_s = [start_s] * lanes + [arrival.time_s for arrival in in_order]
        spans = [(since, *arrival) for since, arrival in zip(since_s, in_order, strict=False)]
        self._changes = sorted([(span[0], *span) for span in spans] + [(span[1], *span) for span in spans])

    def time_of(self, fraction: float) -> float:
        """When this share of all bytes had landed."""
        wanted, done, rate, now_s = fraction * self.nbytes, 0.0, 0.0, self._start_s
        for time_s, since, until, nbytes in self._changes:
            landed = rate * (time_s - now_s)
            if rate > 0 and done + landed >= wanted:
                return now_s + (wanted - done) / rate
            done, now_s = done + landed, time_s
            if since == until:
                done += nbytes / 2  # both of its changes are now
                if done >= wanted:
                    return now_s
            else:
                rate += (1 if time_s == since else -1) * nbytes / (until - since)
        return now_s

    def rate(self, start: float, end: float) -> float | None:
        """GB/s between two shares of all bytes; None if they landed at once."""
        seconds = self.time_of(end) - self.time_of(start)
        return round((end - start) * self.nbytes / seconds / 1e9, 4) if seconds > 0 else None

    def tenths(self) -> list[float | None]:
        """GB/s in each tenth of the bytes; the first one has the wait for the first byte in it."""
        return [self.rate(low / _TENTHS, high / _TENTHS) for low, high in pairwise(range(_TENTHS + 1))]


def figures(
    *, exec_s: float, planned_s: float, landed_s: float, arrivals: Sequence[Arrival], lanes: int, cpu_s: float
) -> dict[str, Any]:
    """What is kept of one load.

    Args:
        exec_s: When the process was started.
        planned_s: When it asked for the first byte.
        landed_s: When the last one was in its place.
        arrivals: What landed when.
        lanes: How many arrive at once.
        cpu_s: What the process has computed by now, from its exec on.
    """
    curve = Curve(planned_s, arrivals, lanes)
    return {
        "seconds": round(landed_s - exec_s, 4),
        "planned_s": round(planned_s - exec_s, 4),
        "first_landed_s": round(arrivals[0].time_s - exec_s, 4),
        "bytes": curve.nbytes,
        "steady": curve.rate(0.1, 0.9),
        "transfer": round(curve.nbytes / (landed_s - planned_s) / 1e9, 4),
        "whole": round(curve.nbytes / (landed_s - exec_s) / 1e9, 4),
        "cpu_s_per_gb": round(cpu_s / (curve.nbytes / 1e9), 3),
        "tenths": curve.tenths(),
    }


def tell(measurement: dict[str, Any]) -> NoReturn:
    """Hand a measurement to the benchmark, stay until it has looked at this process's memory, and end at once."""
    print(RESULT_PREFIX + json.dumps(measurement), flush=True)
    sys.stdin.read()
    os._exit(0)
