"""The server process once its children run: event loop, signals, HTTP, and the way out.

Takes a listening socket and two running children; gives the exit code. Knows no message and no tensor:
`app.supervisor` drives the startup, `app.api` answers requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app.api.front import Application, Front
from app.child import Child
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

logger = logging.getLogger(__name__)

_GIL_SWITCH_S = 0.0005
# After the drain every request has its answer; this is for writing it.
_LAST_WORDS_S = 2


@dataclass(frozen=True)
class Start:
    """What exists before the event loop does."""

    settings: Settings
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
    logs.configure(start.settings.observability.log_level)
    for notice in start.settings.notices:
        logger.info(notice)
    return asyncio.run(_serve(start))


async def _serve(start: Start) -> int:
    service = _service(start)
    stopped = _stop_on_signals()
    supervisor = Supervisor(
        service, start.request, _wishes(start.settings), start.spawn, loader=start.loader, engine=start.engine
    )
    reporting = asyncio.create_task(_report_when_ready(service, start.settings))
    try:
        front = Front(service)
        server = await asyncio.to_thread(_build_http_server, front)
        serving = asyncio.create_task(server.serve(sockets=[start.sock]))
        front.serve_with(await asyncio.to_thread(_build_api, service, start.settings))
        code = await _until_the_end(service, supervisor, stopped, serving, start.settings.startup.fail_linger_s)
        await _drain(service, start.settings.server.drain_timeout_s)
        server.should_exit = True
        await serving
        return code
    finally:
        reporting.cancel()
        supervisor.close()


def _wishes(settings: Settings) -> Wishes:
    return Wishes(
        dtype=settings.model.dtype,
        shard_count=settings.model.shard_count,
        warmup_prompt=settings.startup.warmup_prompt,
        generation_config=settings.model.generation_config,
        engine=settings.engine_options(),
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


async def _report_when_ready(service: Service, settings: Settings) -> None:
    """Log the ledger once the server is ready, if phase timings are wanted."""
    while service.lifecycle.state is not State.READY:
        await service.lifecycle.changed()
    if settings.observability.emit_phase_timings:
        for line in service.ledger.lines():
            logger.info(line)
