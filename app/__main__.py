"""t=0. Settings, socket, loader, engine; everything heavy is imported after these are at work.

Takes the command line. `serve` is written out here, because the order of its first twenty lines is the
cold start; every other command is `app.cli`'s.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from app.errors import CommandError
from app.settings import Settings, parse
from streaming.clock import boottime_s, exec_time_s
from streaming.errors import StreamingError

if TYPE_CHECKING:
    import socket


def main() -> None:
    """The `coldstream` command: exits 0, or with the error's code after one line on standard error."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code."""
    try:
        command = parse(arguments, os.environ)
        if command.name == "serve":
            return serve(command.settings)
        from app import cli

        return cli.run(command)
    except (CommandError, StreamingError) as error:
        sys.stderr.write(f"coldstream: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def serve(settings: Settings) -> int:
    """Bind, start loader and engine, then import the rest and serve."""
    exec_s = exec_time_s()
    main_s = boottime_s()
    # Until the event loop has its own handlers; as PID 1 of a container the signal would even be lost.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    sock = listen(settings.server.host, settings.server.port)
    bound_s = boottime_s()
    from app import child
    from streaming.messages import LoadRequest, Origin, PhaseTimed
    from streaming.wire import encode

    device = settings.device
    arguments = {"app.engine": (settings.observability.log_level, device.kind)}
    environ = device.environment(os.environ)

    def spawn(module: str) -> child.Child:
        return child.spawn(module, environ, *arguments.get(module, ()))

    loader = spawn("streaming")
    engine = spawn("app.engine")
    request = LoadRequest(
        origin=Origin(arena_id=f"{os.getpid()}"),
        uri=settings.model.uri,
        source=settings.storage.source_options(),
        pipeline=settings.storage.pipeline_options(),
        destination=settings.destination_options(),
    )
    with contextlib.suppress(BrokenPipeError):  # a loader that died at once is noticed and replaced later
        loader.sock.sendall(encode(request))
    phases = (
        PhaseTimed(name="interpreter", start_s=exec_s, end_s=main_s),
        PhaseTimed(name="server.bind", start_s=main_s, end_s=bound_s),
        PhaseTimed(name="children.spawn", start_s=bound_s, end_s=boottime_s()),
    )
    from app.serve import Start, run

    return run(Start(settings, exec_s, sock, spawn, request, loader, engine, phases))


def listen(host: str, port: int) -> socket.socket:
    """A listening socket: connections queue in it until FastAPI is there to answer them.

    Raises:
        ServerError: The address cannot be bound.
    """
    import socket

    from app.errors import ServerError

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(2048)
    except OSError as error:
        sock.close()
        raise ServerError(f"cannot listen on {host}:{port}: {error.strerror}: choose another --port") from error
    return sock


if __name__ == "__main__":
    main()
