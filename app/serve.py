"""The server process once its children run: event loop, signals, HTTP, and the way out.

Takes a listening socket and two running children; gives the exit code. Knows no message and no tensor:
`app.supervisor` drives the startup, `app.api` answers requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from app.api.front import Application, Front, Render
from app.child import Child, spawn
from app.engine_client import EngineClient
from app.lifecycle import Lifecycle, State
from app.service import Patience, Service
from app.settings import Settings
from app.supervisor import Supervisor
from app.telemetry import logs
from app.telemetry.ledger import Ledger
from app.wishes import Wishes
from streaming.clock import boottime_s
from streaming.messages import LoadRequest, PhaseTimed

if TYPE_CHECKING:
    import uvicorn

    from app.telemetry.tracing import Tracing

logger = logging.getLogger(__name__)

_GIL_SWITCH_S = 0.0005
# A request that waits for a ready server has the processor to itself for so long, before an exporter starts.
_FIRST_ANSWER_S = 0.3
_EXPORTER = "app.telemetry.exporter"
# After the drain every request has its answer; this is for writing it.
_LAST_WORDS_S = 2


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
    service = _service(start)
    stopped = _stop_on_signals()
    supervisor = Supervisor(
        service, start.request, Wishes.of(start.settings), start.spawn, loader=start.loader, engine=start.engine
    )
    tracing: Tracing | None = None
    try:
        front = Front(service)
        server = await asyncio.to_thread(_build_http_server, front)
        serving = asyncio.create_task(server.serve(sockets=[start.sock]))
        front.measure_with(await asyncio.to_thread(_build_metrics, service))
        tracing = await asyncio.to_thread(_build_tracing, service, start.settings, start.environ)
        reporting = asyncio.create_task(_report_when_ready(service, start.settings, tracing))
        front.serve_with(await asyncio.to_thread(_build_api, service, start.settings))
        code = await _until_the_end(service, supervisor, stopped, serving, start.settings.startup.fail_linger_s)
        await _drain(service, start.settings.server.drain_timeout_s)
        if start.settings.observability.emit_gpu_memory_watermark:
            _log_watermark(service)
        server.should_exit = True
        await serving
        reporting.cancel()
        return code
    finally:
        supervisor.close()
        if tracing is not None:
            await asyncio.to_thread(tracing.close)


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
        patience=Patience(settings.server.request_deadline_s, settings.server.stream_keep_alive_s or None),
        report_first_token=settings.observability.emit_first_token_latency,
    )


def _stop_on_signals() -> asyncio.Event:
    """SIGTERM and SIGINT stop the server gently, a second one at once.

    The signals are ours: uvicorn would close the listener on the first one, and exit 143.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)

    def stop() -> None:
        stopped.set()
        for number in numbers:
            loop.remove_signal_handler(number)

    for number in numbers:
        loop.add_signal_handler(number, stop)
    return stopped


def _build_http_server(front: Front) -> uvicorn.Server:
    """Import uvicorn, in a thread: the children are talking to the event loop already."""
    import uvicorn

    class Server(uvicorn.Server):
        """uvicorn, without its signal handlers."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    config = uvicorn.Config(
        front,
        interface="asgi3",
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=_LAST_WORDS_S,
    )
    config.load()  # else uvicorn does it on the event loop: 0.2 s of imports during which no probe is answered
    return Server(config)


def _build_metrics(service: Service) -> Render:
    """Import prometheus-client, in a thread: probes are being answered already."""
    from app.telemetry.metrics import Metrics

    metrics = Metrics(service)
    service.observers.append(metrics.observe)
    service.http_observers.append(metrics.observe_http)
    return metrics.render


def _build_tracing(service: Service, settings: Settings, environ: Mapping[str, str]) -> Tracing:
    """Have requests traced, and the startup once it is over; the exporter is a process that starts only then."""
    from app.telemetry.export import TraceExport
    from app.telemetry.trace_options import trace_options
    from app.telemetry.tracing import Tracing

    options = trace_options(environ, settings.observability.otlp_traces_endpoint)
    if options.is_exported and importlib.util.find_spec("opentelemetry") is None:
        logger.warning("no traces: OpenTelemetry is not installed: pip install 'coldstream[otel]'")
        options = replace(options, exporters=())
    export = TraceExport(
        lambda: spawn(_EXPORTER, options.exporter_environ, *options.exporters), delay_s=_FIRST_ANSWER_S
    )
    tracing = Tracing(options, export, service.ledger)
    service.begin_trace, service.dropped_traces = tracing.begin, tracing.dropped
    if options.is_exported:
        service.observers.append(tracing.observe)
        service.http_observers.append(tracing.observe_http)
    return tracing


def _build_api(service: Service, settings: Settings) -> Application:
    """Import FastAPI and build the application, in a thread: probes are being answered already."""
    start_s = boottime_s()
    from app.api.cors import CorsOptions
    from app.api.server import ApiOptions, create_app

    server = settings.server
    cors = CorsOptions(
        server.allowed_origins, server.allowed_methods, server.allowed_headers, credentials=server.allow_credentials
    )
    options = ApiOptions(api_keys=server.api_keys, max_body_bytes=server.max_body_bytes, cors=cors)
    application = create_app(service, options)
    # What was imported is no garbage, and looking for some in it stops every stream for some 40 ms.
    gc.freeze()
    service.ledger.phase("server.import", start_s, boottime_s())
    return application


async def _until_the_end(
    service: Service, supervisor: Supervisor, stopped: asyncio.Event, serving: asyncio.Task[None], linger_s: float
) -> int:
    """Wait for a signal (exit 0), for a failure (its code, after the linger), or for the HTTP server's end."""
    stop = asyncio.create_task(stopped.wait())
    endings: set[asyncio.Future[Any]] = {stop, supervisor.failure, serving}
    await asyncio.wait(endings, return_when=asyncio.FIRST_COMPLETED)
    if not stop.done() and supervisor.failure.done():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop, linger_s)  # the reason stands on /health meanwhile
    stop.cancel()
    if supervisor.failure.done():
        return supervisor.failure.result().exit_code
    service.lifecycle.advance(State.DRAINING, "shutting down: requests in flight finish, new ones are refused")
    return 0 if stopped.is_set() else 6


async def _drain(service: Service, timeout_s: float) -> None:
    """Let sequences in flight finish, while probes say 503; what is left after the timeout ends with an error."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(service.engine.drained(), timeout_s)
    service.engine.detach("the server is shutting down")


def _log_watermark(service: Service) -> None:
    device = service.load.stats and service.load.stats.device
    if device:
        logger.info("GPU memory: at most %d of %d bytes were taken", device.peak_bytes, device.total_bytes)


async def _report_when_ready(service: Service, settings: Settings, tracing: Tracing) -> None:
    """Trace the startup once the server is ready, and log the ledger, if phase timings are wanted."""
    while service.lifecycle.state is not State.READY:
        await service.lifecycle.changed()
    tracing.startup_ended()
    if settings.observability.emit_phase_timings:
        for line in service.ledger.lines():
            logger.info(line)
