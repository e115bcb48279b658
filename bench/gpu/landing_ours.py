"""Our loader, driven as the server drives it: `python -m bench.gpu.landing_ours URI DEVICE LANES CHUNK_BYTES`.

The loader is a process of its own and is timed from its exec; this one plays the server. When a chunk landed is
when its message came here. GPU memory is given back when this process ends.
"""

from __future__ import annotations

import resource
import sys
from typing import Any

from app.child import Child
from bench.gpu.landing_curve import Arrival, figures, tell
from streaming.clock import boottime_s
from streaming.messages import LandedChunks, PhaseTimed, Planned
from streaming.options import DestinationOptions, PipelineOptions, SourceOptions
from tests.loader import load


class _Listener:
    """What the loader said, and when."""

    def __init__(self) -> None:
        self.exec_s = 0.0
        self.planned_s = 0.0
        self.arrivals: list[Arrival] = []
        self._nbytes: dict[int, int] = {}

    def hear(self, _child: Child, message: object) -> None:
        """Take one message."""
        now_s = boottime_s()
        match message:
            case PhaseTimed(name="loader.spawn", start_s=start_s):
                self.exec_s = start_s
            case Planned(plan=plan, planned_s=planned_s):
                self.planned_s = planned_s
                self._nbytes = {chunk.chunk_id: chunk.nbytes for chunk in plan.chunks}
            case LandedChunks(chunk_ids=chunk_ids):
                self.arrivals += [Arrival(now_s, self._nbytes[chunk_id]) for chunk_id in chunk_ids]


def land(uri: str, device: str, lanes: int, chunk_bytes: int) -> dict[str, Any]:
    """One load; a fallback to other memory is an error, since it would be measured under a wrong name."""
    listener = _Listener()
    result = load(
        uri,
        source=SourceOptions(),
        pipeline=PipelineOptions(lanes=lanes, chunk_bytes=chunk_bytes),
        destination=DestinationOptions(device=device, host_fallback=False),
        on_message=listener.hear,
    )
    if result.report is None:
        sys.exit(result.error.message if result.error else "the loader ended without a word")
    measured = figures(
        exec_s=listener.exec_s,
        planned_s=listener.planned_s,
        landed_s=result.report.landed_s,
        arrivals=listener.arrivals,
        lanes=lanes,
        cpu_s=_children_cpu_s(),
    )
    return measured | {"loader_peak_rss_mib": round(result.max_resident_bytes / 2**20, 1)}


def _children_cpu_s() -> float:
    """The loader's: it is the only child, and has been waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    uri, device, lanes, chunk_bytes = sys.argv[1:]
    tell(land(uri, device, int(lanes), int(chunk_bytes)))
