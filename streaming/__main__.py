"""The loader process: `python -P -m streaming FD PARENT_PID`.

Takes a `LoadRequest` from the server over the socket FD, lands the checkpoint's bytes in the arena (or stages its
shards on disk), says so and exits. Imports no torch: bytes must flow while the engine is still importing it. A
request with `resume` carries the arena of a loader that died, and only what had not landed is fetched.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING

from streaming.clock import boottime_s, exec_time_s
from streaming.counters import FetchCounters
from streaming.cuda_driver import import_early
from streaming.destination import Destination
from streaming.errors import CheckpointError, StreamingError
from streaming.errors import report as error_report
from streaming.mailbox import Mailbox
from streaming.messages import (
    ArenaMemory,
    BlobVersion,
    Chunk,
    Counted,
    Described,
    FellBack,
    Landed,
    LandedChunks,
    Layout,
    LoadFailed,
    LoadReport,
    LoadRequest,
    PhaseTimed,
    Plan,
    Planned,
    ShardTimes,
    Staged,
    ToLoader,
)
from streaming.options import HOST_STAGING
from streaming.plan import plan_load
from streaming.process import die_with_parent, give_way, reuse_large_blocks
from streaming.telling import Telling
from streaming.wire import Connection, ConnectionClosed

if TYPE_CHECKING:
    from streaming.manifest import OnFlaw
    from streaming.reading import Reading

Server = Mailbox[ToLoader]

# Several within the shortest --stall-timeout.
_SIGN_OF_LIFE_S = 0.25


def main(arguments: list[str]) -> int:
    """Run one load; the exit code is the error's, 0 when everything has landed."""
    fd, parent_pid = map(int, arguments)
    die_with_parent(parent_pid)
    give_way()
    reuse_large_blocks()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the server decides
    connection: Connection[ToLoader] = Connection(socket.socket(fileno=fd), ToLoader)
    server = Mailbox(connection, on_closed=lambda: os._exit(0))  # nobody wants these bytes
    server.send(PhaseTimed(name="loader.spawn", start_s=exec_time_s(), end_s=boottime_s()))
    import_early()  # the server is still reading its settings
    try:
        request, fds = server.recv()
        assert isinstance(request, LoadRequest)  # the server speaks first, and says this
        code = _answer(server, request, fds)
    except ConnectionClosed:
        return 0  # the server is gone or has refused the model
    server.flush()
    return code


def _answer(server: Server, request: LoadRequest, fds: list[int]) -> int:
    staged = request.strategy == HOST_STAGING
    destination = None if staged else Destination(request.destination, request.pipeline.chunk_bytes, server.send)
    with contextlib.ExitStack() as at_the_end:
        try:
            with Telling(counters := FetchCounters(), lambda now: server.send(Counted(counters=now))):
                # Imported only now: the GPU has been starting meanwhile, and takes longer than they do.
                from streaming.reading import Reading
                from streaming.source import open_source

                source = open_source(request.uri, request.source)
                reading = Reading(source, request, counters, server.send)
                # The server has heard by then how it went. What a load that failed has fetched is there for the next one.
                at_the_end.callback(reading.finish)
                if destination is None:
                    _stage(server, request, reading)
                else:
                    _stream(server, request, reading, destination, fds)
        except StreamingError as error:
            server.send(LoadFailed(origin=request.origin, error=error_report(error)))
            return error.exit_code
    return 0


def _stream(server: Server, request: LoadRequest, reading: Reading, destination: Destination, fds: list[int]) -> None:
    """Land every chunk at its address."""
    from streaming.pipeline import land
    from streaming.timings import Timings

    if (resume := request.resume) is None:
        plan, layout = _plan(server, request, reading)
        start_s = boottime_s()
        arena = destination.create(plan.arena_bytes, layout.reserve_bytes)
        planned_s = boottime_s()
        server.send(Planned(origin=request.origin, plan=plan, memory=arena.memory, planned_s=planned_s), [arena.fd])
        server.send(PhaseTimed(name="arena", start_s=start_s, end_s=planned_s))
    else:
        plan, arena = resume.plan, destination.reopen(fds[0], resume.memory)
    left = _left(request, plan)
    reading.expect(plan.versions)

    def on_landed(chunk: Chunk) -> None:
        server.send(LandedChunks(origin=request.origin, chunk_ids=(chunk.chunk_id,)))

    if resume is None:
        _put_off(server, request)
    start_s = boottime_s()
    timings = Timings()
    fetched_s = land(
        reading.ranges(),
        left,
        plan.versions,
        arena,
        check=reading.check(plan.digests, _on_flaw(server, request)),
        lanes=request.pipeline.lanes,
        landers=request.pipeline.landers,
        writers=request.pipeline.writers,
        on_landed=on_landed,
        timings=timings,
    )
    landed_s, times = boottime_s(), timings.shards()
    server.send(PhaseTimed(name="weights.fetch", start_s=start_s, end_s=fetched_s))
    if times:
        _tell_landing(server, times, landed_s)
    _finish(server, request, reading.counters, fetched_s, landed_s, times)


def _put_off(server: Server, request: LoadRequest) -> None:
    """Wait so that a fleet does not start as one; nothing has landed meanwhile, but nothing hangs either."""
    from streaming.throttling import start_wait_s

    end_s = time.monotonic() + start_wait_s(request.pipeline.throttling.start_jitter_s)
    while (left_s := end_s - time.monotonic()) > 0:
        server.send(LandedChunks(origin=request.origin, chunk_ids=()))
        time.sleep(min(left_s, _SIGN_OF_LIFE_S))


def _tell_landing(server: Server, times: tuple[ShardTimes, ...], landed_s: float) -> None:
    """The phases between a fetched byte and its address."""
    from streaming.timings import whole

    staged_s, taken_s = whole(times, "stage")
    copied_s, _ = whole(times, "copy")
    server.send(PhaseTimed(name="weights.stage", start_s=staged_s, end_s=taken_s))
    server.send(PhaseTimed(name="weights.copy", start_s=copied_s, end_s=landed_s))


def _stage(server: Server, request: LoadRequest, reading: Reading) -> None:
    """Put every shard on disk, from where the engine loads it."""
    from streaming.staging import Staging

    staging = Staging(reading.location, request.source, request.pipeline)
    if request.resume is None:
        plan, _ = _plan(server, request, reading)
        memory = ArenaMemory("staged", plan.arena_bytes)
        server.send(Planned(origin=request.origin, plan=plan, memory=memory, planned_s=boottime_s()))
    else:
        plan = request.resume.plan
    shards = {chunk.shard for chunk in _left(request, plan)}

    def on_staged(version: BlobVersion, fd: int) -> None:
        server.send(Staged(origin=request.origin, shard=version.name), [fd])

    def on_bytes() -> None:
        """Nothing has landed before its shard is whole, but nothing hangs either."""
        server.send(LandedChunks(origin=request.origin, chunk_ids=()))

    start_s = boottime_s()
    times = staging.stage([version for version in plan.versions if version.name in shards], on_staged, on_bytes)
    end_s = boottime_s()
    server.send(PhaseTimed(name="weights.fetch", start_s=start_s, end_s=end_s))
    reading.counters.unverified_bytes += sum(shard.nbytes for shard in times)
    _finish(server, request, reading.counters, end_s, end_s, times)


def _plan(server: Server, request: LoadRequest, reading: Reading) -> tuple[Plan, Layout]:
    """Describe the checkpoint, let the server lay it out, and decide every address."""
    from streaming import digests
    from streaming.describe import describe

    start_s = boottime_s()
    found = describe(reading.metadata(), _on_flaw(server, request))
    server.send(PhaseTimed(name="source.headers", start_s=start_s, end_s=boottime_s()))
    server.send(
        Described(
            origin=request.origin,
            files=found.files,
            entries=found.entries,
            versions=found.versions,
            has_manifest=found.has_manifest,
        )
    )
    if found.has_manifest:  # while the server lays the model out
        threading.Thread(target=digests.import_early, name="digests", daemon=True).start()
    layout, _ = server.recv()
    assert isinstance(layout, Layout)  # after a refusal the server kills this process
    start_s = boottime_s()
    chunk_bytes = request.pipeline.chunk_bytes_for(sum(entry.end - entry.start for entry in found.entries))
    known = {} if request.strategy == HOST_STAGING else found.digests  # whole shards are no blocks
    plan = plan_load(found.entries, found.versions, layout, chunk_bytes=chunk_bytes, digests=known)
    for version in plan.versions:
        if version.name in known and version.name not in plan.digests:
            reason = f"{version.name} holds a tensor to cast whose elements lie across blocks: it is not verified"
            server.send(FellBack(what="unverified-shard", reason=reason))
    server.send(PhaseTimed(name="plan", start_s=start_s, end_s=boottime_s()))
    return plan, layout


def _on_flaw(server: Server, request: LoadRequest) -> OnFlaw:
    """What to do about bytes that are not those of the manifest."""

    def tell(flaw: CheckpointError) -> None:
        if request.refuse_mismatches:
            raise flaw
        server.send(FellBack(what="unverified-bytes", reason=str(flaw)))

    return tell


def _left(request: LoadRequest, plan: Plan) -> list[Chunk]:
    done = set(request.resume.landed_chunk_ids) if request.resume else set[int]()
    return [chunk for chunk in plan.chunks if chunk.chunk_id not in done]


def _finish(
    server: Server,
    request: LoadRequest,
    counters: FetchCounters,
    fetched_s: float,
    landed_s: float,
    shards: tuple[ShardTimes, ...],
) -> None:
    """Say that the bytes are there."""
    report = LoadReport(
        fetched_bytes=sum(shard.nbytes for shard in shards),
        fetched_s=fetched_s,
        landed_s=landed_s,
        shards=shards,
        counters=counters,
    )
    server.send(Landed(origin=request.origin, report=report))


if __name__ == "__main__":
    code = main(sys.argv[1:])
    # Every byte is at its address and every message is sent; tearing down obstore's runtime only costs time.
    sys.stderr.flush()
    os._exit(code)
