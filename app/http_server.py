"""HTTP from the first second: probes at once, then metrics, traces and the API, each as soon as it is imported.

Takes a service and a listening socket; serves until it is told to stop. Knows no child process and no signal.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import logging
import socket
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from app.api.front import Application, Front, Render
from app.child import spawn
from app.service import Service
from app.settings import Settings
from streaming.clock import boottime_s

if TYPE_CHECKING:
    import uvicorn

    from app.telemetry.tracing import Tracing

logger = logging.getLogger(__name__)

_EXPORTER = "app.telemetry.exporter"
# When it is told to stop every request has its answer; this is for writing it.
_LAST_WORDS_S = 2
# Longer than load balancers keep theirs: who closes first may lose a request that is on its way.
_KEEP_ALIVE_S = 120


class HttpServer:
    """One server's; `front` is what it answers with, `tracing` is there once OpenTelemetry's options are read.

    Args:
        service: What it serves.
        sock: Listening already: connections queue in it.
        settings: Of server and observability.
        environ: Where OTEL_ variables are.
    """

    def __init__(self, service: Service, sock: socket.socket, settings: Settings, environ: Mapping[str, str]):
        self.front = Front(service)
        self.tracing: asyncio.Future[Tracing] = asyncio.get_running_loop().create_future()
        self._service = service
        self._sock = sock
        self._settings = settings
        self._environ = environ
        self._stopping = False
        self._server: uvicorn.Server | None = None

    async def run(self) -> None:
        """Serve until `stop`, and until what is being answered then is written, for 2 s at most."""
        server = self._server = await asyncio.to_thread(_build_http_server, self.front)
        server.should_exit = self._stopping
        serving = asyncio.create_task(server.serve(sockets=[self._sock]))
        try:
            await self._open()
        except BaseException:
            server.should_exit = True
            raise
        finally:
            await serving

    def stop(self) -> None:
        """Listen no more."""
        self._stopping = True
        if self._server is not None:
            self._server.should_exit = True

    async def _open(self) -> None:
        """Import one thing after the other, in a thread: probes are being answered already, and children start."""
        service, settings = self._service, self._settings
        self.front.measure_with(await asyncio.to_thread(_build_metrics, service))
        self.tracing.set_result(await asyncio.to_thread(_build_tracing, service, settings, self._environ))
        if self._stopping:
            self.front.serve_with(self.front.refuse)
        else:
            self.front.serve_with(await asyncio.to_thread(_build_api, service, settings))


def _build_http_server(front: Front) -> uvicorn.Server:
    import uvicorn

    class Server(uvicorn.Server):
        """uvicorn, without its signal handlers: it would close the listener on the first one, and exit 143."""

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
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_LAST_WORDS_S,
    )
    config.load()  # else uvicorn does it on the event loop: 0.2 s of imports during which no probe is answered
    return Server(config)


def _build_metrics(service: Service) -> Render:
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
    export = TraceExport(lambda: spawn(_EXPORTER, options.exporter_environ, *options.exporters))
    tracing = Tracing(options, export, service.ledger)
    service.begin_trace, service.dropped_traces = tracing.begin, tracing.dropped
    if options.is_exported:
        service.observers.append(tracing.observe)
        service.http_observers.append(tracing.observe_http)
    return tracing


def _build_api(service: Service, settings: Settings) -> Application:
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
