"""A loader process driven by a test, which plays the server: layout in, arena out."""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from app.child import Child, spawn
from streaming.counters import FetchCounters
from streaming.errors import ErrorReport
from streaming.messages import (
    ArenaMemory,
    Counted,
    Described,
    FellBack,
    FromLoader,
    Landed,
    LandedChunks,
    Layout,
    LoadFailed,
    LoadReport,
    LoadRequest,
    Origin,
    Plan,
    Planned,
    Resume,
    Staged,
    TensorLayout,
)
from streaming.options import DIRECT_GPU, CacheOptions, DestinationOptions, PipelineOptions, SourceOptions
from streaming.wire import Connection, ConnectionClosed

ORIGIN = Origin(arena_id="test")


@dataclass(eq=False)
class Load:
    """What a load brought: the arena's bytes by stored name, or the error."""

    described: Described | None = None
    plan: Plan | None = None
    fd: int | None = None
    memory: ArenaMemory | None = None
    staged: dict[str, int] = field(default_factory=dict)
    fallbacks: list[FellBack] = field(default_factory=list)
    landed_chunk_ids: list[int] = field(default_factory=list)
    report: LoadReport | None = None
    counters: FetchCounters = field(default_factory=FetchCounters)
    error: ErrorReport | None = None
    max_resident_bytes: int = 0
    resumed: Load | None = None  # it owns the descriptor

    def tensor(self, name: str) -> bytes:
        """The landed bytes of one tensor."""
        assert self.plan is not None
        assert self.fd is not None
        extent = self.plan.extents[name]
        return os.pread(self.fd, extent.nbytes, extent.start)


def as_stored(described: Described) -> Layout:
    """Every tensor under its own name, in its own dtype."""
    tensors = tuple(TensorLayout(entry.name, entry.name, entry.dtype) for entry in described.entries)
    return Layout(origin=ORIGIN, tensors=tensors)


def load(
    uri: str,
    *,
    strategy: str = DIRECT_GPU,
    source: SourceOptions | None = None,
    pipeline: PipelineOptions | None = None,
    destination: DestinationOptions | None = None,
    cache: CacheOptions | None = None,
    environ: Mapping[str, str] | None = None,
    layout: Callable[[Described], Layout] = as_stored,
    refuse_mismatches: bool = True,
    resume: Load | None = None,
    on_message: Callable[[Child, object], None] = lambda _child, _message: None,
) -> Load:
    """Run a loader to its end, whatever that is; `resume` continues a load that was cut off."""
    request = LoadRequest(
        origin=ORIGIN,
        uri=uri,
        strategy=strategy,
        refuse_mismatches=refuse_mismatches,
        source=source or SourceOptions(max_retries=1, retry_timeout_s=5),
        pipeline=pipeline or PipelineOptions(lanes=4, chunk_bytes=1 << 20),
        destination=destination or DestinationOptions(),
        cache=cache,
        resume=_resume(resume),
    )
    result = Load(plan=resume.plan, fd=resume.fd, memory=resume.memory, resumed=resume) if resume else Load()
    child = spawn("streaming", {**os.environ, **(environ or {})})
    connection: Connection[FromLoader] = Connection(child.sock, FromLoader)
    connection.send(request, [result.fd] if resume and result.fd is not None else [])
    try:
        while True:
            message, fds = connection.recv()
            _take(result, message, fds)
            result.max_resident_bytes = max(result.max_resident_bytes, _peak_resident_bytes(child.process.pid))
            if isinstance(message, Described):
                connection.send(layout(message))
            on_message(child, message)
    except ConnectionClosed:
        child.process.wait()
    finally:
        child.kill()
    connection.close()
    return result


def _resume(resume: Load | None) -> Resume | None:
    """What a loader that goes on with `resume` is told of it."""
    if resume is None or resume.plan is None or resume.memory is None:
        return None
    return Resume(resume.plan, resume.memory, tuple(resume.landed_chunk_ids))


def _peak_resident_bytes(pid: int) -> int:
    """The kernel's high-water mark of a process; 0 once it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except ProcessLookupError:
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def _take(result: Load, message: FromLoader, fds: list[int]) -> None:
    match message:
        case Described():
            result.described = message
        case Planned(plan=plan, memory=memory):
            result.plan, result.fd, result.memory = plan, next(iter(fds), None), memory
            for fd in fds:
                weakref.finalize(result, os.close, fd)
        case Staged(shard=shard):
            result.staged[shard] = fds[0]
            result.landed_chunk_ids += (chunk.chunk_id for chunk in result.plan.chunks if chunk.shard == shard)
            weakref.finalize(result, os.close, fds[0])
        case FellBack():
            result.fallbacks.append(message)
        case LandedChunks(chunk_ids=chunk_ids):
            result.landed_chunk_ids += chunk_ids
        case Counted(counters=counters):
            result.counters = counters
        case Landed(report=report):
            result.report, result.counters = report, report.counters
        case LoadFailed(error=error):
            result.error = error
