"""The server process once its children run: event loop, signals, and the way out.

Takes a listening socket and two running children; gives the exit code. Knows no message and no tensor:
`app.supervisor` drives the startup, `app.http_server` answers requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from app import last_words
from app.api.front import Front
from app.child import Child
from app.engine_client import EngineClient
from app.engine_host import EnginePatience
from app.errors import NotReady
from app.http_server import HttpServer
from app.lifecycle import Lifecycle, State
from app.service import Patience, Service
from app.settings import Settings
from app.settings.serving import ServerSettings
from app.supervisor import Supervisor, Timeouts
from app.telemetry import logs
from app.telemetry.ledger import Ledger
from app.wishes import Wishes
from streaming.clock import boottime_s
from streaming.errors import ErrorReport
from streaming.messages import LoadRequest, PhaseTimed

logger = logging.getLogger(__name__)

_GIL_SWITCH_S = 0.0005
# A processor may need minutes for thousands of tokens of a large model.
_GPU_STEP_S, _CPU_STEP_S = 60.0, 600.0
# Whoever is cut off by a drain asks another server.
_ELSEWHERE_S = 1.0


@dataclass(frozen=True)
class Start:
    """What exists before the event loop does."""

    settings: Settings
    environ: Mapping[str, str]
    exec_s: float
    sock: socket.socket
    spawn: Callable[[str, bool], Child]
    request: LoadRequest
    loader: Child
    engine: Child
    phases: tuple[PhaseTimed, ...]


def run(start: Start) -> int:
    """Serve until a signal or a failure; returns the exit code."""
    # A thread imports FastAPI while the event loop answers probes, and each of a probe's few turns waits this
    # long for the GIL: with the default of 5 ms that adds up to 30.
    sys.setswitchinterval(_GIL_SWITCH_S)
    logs.configure(start.settings.observability.log_level, start.settings.observability.log_format)
    for notice in start.settings.notices:
        logger.info(notice)
    return asyncio.run(_serve(start))


async def _serve(start: Start) -> int:
    settings = start.settings
    service = _service(start)
    stopped = _stop_on_signals()
    supervisor = Supervisor(
        service,
        start.request,
        Wishes.of(settings),
        _timeouts(settings),
        start.spawn,
        loader=start.loader,
        engine=start.engine,
    )
    http = HttpServer(service, start.sock, settings, start.environ)
    serving = asyncio.create_task(http.run())
    reporting = asyncio.create_task(_report_start(service, settings, http, supervisor.failure))
    try:
        ending = await _until_the_end(service, supervisor, stopped, serving, settings.startup.fail_linger_s)
        if ending.drains:
            await _drain(service, http.front, settings.server.drain_timeout_s)
        http.stop()
        await asyncio.wait([serving])
        if error := serving.exception():
            logger.error("the HTTP server has failed: please report this", exc_info=error)
        if service.lifecycle.state is State.FAILED and http.tracing.done():
            await reporting
        _say_goodbye(service, settings, ending)
        return ending.exit_code
    finally:
        supervisor.close()
        reporting.cancel()
        if http.tracing.done():
            await asyncio.to_thread(http.tracing.result().close)


def _timeouts(settings: Settings) -> Timeouts:
    engine = settings.engine
    usual_step_s = _GPU_STEP_S if settings.device.kind == "cuda" else _CPU_STEP_S
    return Timeouts(
        stall_s=settings.startup.stall_timeout_s,
        engine=EnginePatience(
            start_s=settings.startup.engine_start_timeout_s, step_s=engine.step_timeout_s or usual_step_s
        ),
    )


def _service(start: Start) -> Service:
    ledger = Ledger(start.exec_s)
    for phase in start.phases:
        ledger.phase(phase.name, phase.start_s, phase.end_s)
    settings = start.settings
    return Service(
        model_names=settings.model.served_model_names,
        lifecycle=Lifecycle(),
        ledger=ledger,
        engine=EngineClient(max_sequences=settings.server.max_waiting_requests),
        patience=_patience(settings.server),
        report_first_token=settings.observability.emit_first_token_latency,
    )


def _patience(server: ServerSettings) -> Patience:
    return Patience(
        deadline_s=server.request_deadline_s,
        keep_alive_s=server.stream_keep_alive_s or None,
        until_ready_s=server.while_loading_timeout_s if server.while_loading == "wait" else 0.0,
        max_held_requests=server.max_held_requests,
    )


def _stop_on_signals() -> asyncio.Event:
    """SIGTERM and SIGINT stop the server gently, a second one at once.

    The signals are ours: a server under way drains first.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)

    def stop() -> None:
        stopped.set()
        for number in numbers:
            loop.remove_signal_handler(number)
            # As PID 1 of a container there is no default action. The children die with us.
            signal.signal(number, lambda number, _: os._exit(128 + number))

    for number in numbers:
        loop.add_signal_handler(number, stop)
    return stopped


@dataclass(frozen=True)
class _Ending:
    """How the server ends, and whether requests in flight may finish before it does."""

    exit_code: int
    reason: str
    drains: bool = False


async def _until_the_end(
    service: Service, supervisor: Supervisor, stopped: asyncio.Event, serving: asyncio.Task[None], linger_s: float
) -> _Ending:
    """Wait for a signal, for a failure (and its linger), or for the HTTP server's end, which nobody has asked for."""
    stop = asyncio.create_task(stopped.wait())
    endings: set[asyncio.Future[Any]] = {stop, supervisor.failure, serving}
    await asyncio.wait(endings, return_when=asyncio.FIRST_COMPLETED)
    if not stop.done() and supervisor.failure.done():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop, linger_s)  # the reason stands on /health meanwhile
    stop.cancel()
    if supervisor.failure.done():
        error = supervisor.failure.result()
        return _Ending(error.exit_code, f"{error.kind}: {error.message}")
    service.lifecycle.advance(State.DRAINING, "shutting down: requests in flight finish, new ones are refused")
    if stopped.is_set():
        return _Ending(0, "stopped by a signal", drains=True)
    broken = serving.exception()
    why = f"{type(broken).__name__}: {broken}" if broken else "nobody asked it to"
    return _Ending(6, f"the HTTP server has ended: {why}")


async def _drain(service: Service, front: Front, timeout_s: float) -> None:
    """Let requests in flight finish, while probes say 503; what is left after the timeout ends with an error."""
    start_s = boottime_s()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(front.idle(), timeout_s)
    logger.info("drained in %.1f s, %d requests were cut off", boottime_s() - start_s, front.in_flight)
    service.engine.detach(NotReady("the server is shutting down", retry_after_s=_ELSEWHERE_S))


def _say_goodbye(service: Service, settings: Settings, ending: _Ending) -> None:
    """The last lines of the log, and the termination message of a server that has failed."""
    device = service.load.stats and service.load.stats.device
    if device and settings.observability.emit_gpu_memory_watermark:
        logger.info("GPU memory: at most %d of %d bytes were taken", device.peak_bytes, device.total_bytes)
    if ending.exit_code:
        last_words.leave(ending.reason, settings.observability.termination_log)
    logger.info("exit %d: %s", ending.exit_code, ending.reason)


async def _report_start(
    service: Service, settings: Settings, http: HttpServer, failure: asyncio.Future[ErrorReport]
) -> None:
    """Trace the startup once the server is ready or has failed; if it is ready, log the ledger where that is wanted."""
    while service.lifecycle.state not in (State.READY, State.FAILED):
        await service.lifecycle.changed()
    tracing = await http.tracing
    if service.lifecycle.state is State.FAILED:
        tracing.startup_failed((await failure).kind, service.lifecycle.health().bytes_landed)
        return
    tracing.startup_ended()
    if settings.observability.emit_phase_timings:
        for line in service.ledger.lines():
            logger.info(line)
