"""One command, from its words to its exit code.

Takes the command line, the environment and, for `serve`, the children that are starting already. `serve` begins
here with what must happen before the event loop; every other command is `app.cli`'s.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from app import last_words
from app.child import Child, spawn
from app.errors import CommandError
from app.messages import StartEngine
from app.settings import Settings, parse
from streaming.clock import boottime_s, exec_time_s
from streaming.errors import StreamingError
from streaming.messages import LoadRequest, Origin, PhaseTimed
from streaming.wire import encode

if TYPE_CHECKING:
    import socket


def run(arguments: Sequence[str], environ: Mapping[str, str], children: Sequence[Child], began_s: float) -> int:
    """Run it; a user's mistake is one line on standard error.

    Args:
        arguments: The command line without the program's name.
        environ: The environment.
        children: Loader and engine, where the command serves.
        began_s: When the first line of ours ran (CLOCK_BOOTTIME).
    """
    termination_log = last_words.TERMINATION_LOG
    try:
        command = parse(arguments, environ)
        termination_log = command.settings.observability.termination_log
        if command.name == "serve":
            loader, engine = children
            return serve(command.settings, environ, loader, engine, began_s)
        from app import cli

        return cli.run(command, environ)
    except (CommandError, StreamingError) as error:
        sys.stderr.write(f"coldstream: {error}\n")
        last_words.leave(str(error), termination_log)
        return error.exit_code


def serve(settings: Settings, environ: Mapping[str, str], loader: Child, engine: Child, began_s: float) -> int:
    """Bind, tell loader and engine what to do, then import the rest and serve."""
    exec_s = exec_time_s()
    parsed_s = boottime_s()
    sock = listen(settings.server.host, settings.server.port)
    bound_s = boottime_s()
    start = StartEngine(
        log_level=settings.observability.log_level,
        log_format=settings.observability.log_format,
        device=settings.device.kind,
        visible_devices=settings.device.visible,
    )

    def respawn(module: str, patient: bool) -> Child:
        child = spawn(module, environ, *(("patient",) if patient else ()))
        if module == engine.module:
            _tell(child, start)
        return child

    _tell(engine, start)
    request = LoadRequest(
        origin=Origin(arena_id=f"{os.getpid()}"),
        uri=settings.model.uri,
        strategy=settings.model.load_strategy,
        refuse_mismatches=settings.startup.fail_if_checksum_mismatch,
        source=settings.storage.source_options(),
        pipeline=settings.storage.pipeline_options(),
        destination=settings.destination_options(),
        cache=settings.storage.cache_options(),
    )
    _tell(loader, request)
    phases = (
        PhaseTimed(name="interpreter", start_s=exec_s, end_s=began_s),
        PhaseTimed(name="server.settings", start_s=began_s, end_s=parsed_s),
        PhaseTimed(name="server.bind", start_s=parsed_s, end_s=bound_s),
    )
    from app.serve import Start, run

    return run(Start(settings, environ, exec_s, sock, respawn, request, loader, engine, phases))


def _tell(child: Child, message: StartEngine | LoadRequest) -> None:
    """The first message to a child; one that died at once is noticed and replaced later."""
    with contextlib.suppress(BrokenPipeError):
        child.sock.sendall(encode(message))


def listen(host: str, port: int) -> socket.socket:
    """A listening socket: connections queue in it until FastAPI is there to answer them.

    Raises:
        ServerError: The address cannot be bound.
    """
    import socket

    from app.errors import ServerError

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = None
    try:
        # With its protocol named: asyncio sends small writes at once on such sockets only, and without that the first
        # token of an answer waits 40 ms for the client to acknowledge the headers.
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(2048)
    except OSError as error:
        if sock is not None:
            sock.close()
        raise ServerError(f"cannot listen on {host}:{port}: {error.strerror}: choose another --port") from error
    return sock
