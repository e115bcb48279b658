"""One load against a hostile source, in this process or in a loader's: what came of it, and what it left behind.

Takes a URI and options; composes the readers as the loader does. Knows no fault.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from streaming.arena import HostArena
from streaming.describe import describe
from streaming.errors import ErrorReport, StreamingError, report
from streaming.messages import Layout, Origin, TensorLayout
from streaming.options import PipelineOptions, SourceOptions
from streaming.pipeline import land
from streaming.plan import plan_load
from streaming.source import open_source
from streaming.timings import Timings

# Small enough that a tiny checkpoint has a dozen ranges.
PIPELINE = PipelineOptions(lanes=4, chunk_bytes=64 << 10)
_GRACE_S = 5.0


@dataclass(frozen=True)
class Outcome:
    """Landed tensors' bytes by name, or the error as the server would hear of it; and how long it took."""

    tensors: Mapping[str, bytes]
    error: ErrorReport | None
    seconds: float


def load_here(uri: str, options: SourceOptions) -> Outcome:
    """Describe, plan and land in this process.

    Any exception that is no `StreamingError` comes through: there is none that a load may raise.
    """
    start_s = time.monotonic()
    try:
        tensors, error = _landed(uri, options), None
    except StreamingError as raised:
        tensors, error = {}, report(raised)
    return Outcome(tensors, error, time.monotonic() - start_s)


def _landed(uri: str, options: SourceOptions) -> dict[str, bytes]:
    source = open_source(uri, options)
    found = describe(source)
    layout = Layout(
        origin=Origin(arena_id="faults"),
        tensors=tuple(TensorLayout(entry.name, entry.name, entry.dtype) for entry in found.entries),
    )
    plan = plan_load(found.entries, found.versions, layout, chunk_bytes=PIPELINE.chunk_bytes)
    arena = HostArena.create(plan.arena_bytes)
    try:
        land(
            source,
            plan.chunks,
            plan.versions,
            arena,
            lanes=PIPELINE.lanes,
            writers=PIPELINE.writers,
            on_landed=lambda _chunk: None,
            timings=Timings(),
        )
        return {name: os.pread(arena.fd, extent.nbytes, extent.start) for name, extent in plan.extents.items()}
    finally:
        os.close(arena.fd)


@contextlib.contextmanager
def nothing_left_behind() -> Iterator[None]:
    """After the block, with grace, there is no thread, socket or file that was not there before."""
    threads, files = set(threading.enumerate()), _files()
    yield
    deadline_s = time.monotonic() + _GRACE_S
    while left := [*set(threading.enumerate()) - threads, *(_files() - files)]:
        assert time.monotonic() < deadline_s, f"left behind: {left}, {psutil.Process().net_connections()}"
        gc.collect()  # an error's traceback may hold an answer in a cycle
        time.sleep(0.005)


def _files() -> set[tuple[str, str]]:
    """Descriptors that are open here, with what they are."""
    found = set()
    for link in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(FileNotFoundError):  # the folder's own
            found.add((link.name, str(link.readlink())))
    return found
