"""The loader process: `python -P -m streaming FD PARENT_PID`.

Takes a `LoadRequest` from the server over the socket FD, lands the checkpoint's bytes in the arena, says so
and exits. Imports no torch: bytes must flow while the engine is still importing it. A request with `resume`
carries the arena of a loader that died, and only what had not landed is fetched.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from streaming import pipeline
from streaming.arena import Arena
from streaming.clock import boottime_s, exec_time_s
from streaming.destination import Destination
from streaming.errors import StreamingError
from streaming.errors import report as error_report
from streaming.messages import (
    Chunk,
    Described,
    Landed,
    LandedChunks,
    Layout,
    LoadFailed,
    LoadReport,
    LoadRequest,
    PhaseTimed,
    Plan,
    Planned,
    ToLoader,
)
from streaming.plan import plan_load
from streaming.process import die_with_parent, give_way, return_large_blocks
from streaming.wire import Connection, ConnectionClosed

if TYPE_CHECKING:
    from streaming.source import Source

Server = Connection[ToLoader]


def main(arguments: list[str]) -> int:
    """Run one load; the exit code is the error's, 0 when everything has landed."""
    fd, parent_pid = map(int, arguments)
    die_with_parent(parent_pid)
    give_way()
    return_large_blocks()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the server decides
    server: Server = Connection(socket.socket(fileno=fd), ToLoader)
    server.send(PhaseTimed(name="loader.spawn", start_s=exec_time_s(), end_s=boottime_s()))
    try:
        request, fds = server.recv()
        assert isinstance(request, LoadRequest)  # the server speaks first, and says this
        return _answer(server, request, fds)
    except ConnectionClosed:
        return 0  # the server is gone or has refused the model: nobody wants these bytes


def _answer(server: Server, request: LoadRequest, fds: list[int]) -> int:
    destination = Destination(request.destination, request.pipeline.chunk_bytes, server.send)
    try:
        # Imported only now: the GPU has been starting meanwhile, and takes longer than they do.
        from streaming.source import open_source

        source = open_source(request.uri, request.source)
        if (resume := request.resume) is None:
            plan, arena, done = *_begin(server, request, source, destination), frozenset[int]()
        else:
            arena = destination.reopen(fds[0], resume.memory)
            plan, done = resume.plan, frozenset(resume.landed_chunk_ids)
        _land(server, request, source, plan, arena, done)
    except StreamingError as error:
        server.send(LoadFailed(origin=request.origin, error=error_report(error)))
        return error.exit_code
    return 0


def _begin(server: Server, request: LoadRequest, source: Source, destination: Destination) -> tuple[Plan, Arena]:
    """Describe the checkpoint, let the server lay it out, and make the arena."""
    from streaming.describe import describe

    start_s = boottime_s()
    found = describe(source)
    server.send(PhaseTimed(name="source.headers", start_s=start_s, end_s=boottime_s()))
    server.send(Described(origin=request.origin, files=found.files, entries=found.entries, versions=found.versions))
    layout, _ = server.recv()
    assert isinstance(layout, Layout)  # after a refusal the server kills this process
    start_s = boottime_s()
    plan = plan_load(found.entries, found.versions, layout, chunk_bytes=request.pipeline.chunk_bytes)
    planned_s = boottime_s()
    arena = destination.create(plan.arena_bytes, layout.reserve_bytes)
    arena_s = boottime_s()
    server.send(Planned(origin=request.origin, plan=plan, memory=arena.memory, planned_s=arena_s), [arena.fd])
    server.send(PhaseTimed(name="plan", start_s=start_s, end_s=planned_s))
    server.send(PhaseTimed(name="arena", start_s=planned_s, end_s=arena_s))
    return plan, arena


def _land(server: Server, request: LoadRequest, source: Source, plan: Plan, arena: Arena, done: Iterable[int]) -> None:
    left = [chunk for chunk in plan.chunks if chunk.chunk_id not in done]

    def on_landed(chunk: Chunk) -> None:
        server.send(LandedChunks(origin=request.origin, chunk_ids=(chunk.chunk_id,)))

    start_s = boottime_s()
    fetched_s = pipeline.land(source, left, plan.versions, arena, lanes=request.pipeline.lanes, on_landed=on_landed)
    end_s = boottime_s()
    server.send(PhaseTimed(name="weights.fetch", start_s=start_s, end_s=end_s))
    fetched_bytes = sum(chunk.nbytes for chunk in left)
    report = LoadReport(fetched_bytes=fetched_bytes, fetched_s=fetched_s, landed_s=end_s)
    server.send(Landed(origin=request.origin, report=report))


if __name__ == "__main__":
    code = main(sys.argv[1:])
    # Every byte is at its address and every message is sent; tearing down obstore's runtime only costs time.
    sys.stderr.flush()
    os._exit(code)
