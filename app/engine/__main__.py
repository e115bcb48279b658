"""The engine process: `python -P -m app.engine FD PARENT_PID`.

FD is a Unix socket to the server. While torch is imported here, a thread hears what to bind and starts the GPU.
"""

from __future__ import annotations

import gc
import signal
import sys

from streaming.process import die_with_parent, give_way


def main() -> int:
    """Import torch, say how long it took, and be the engine."""
    socket_fd, parent_pid = sys.argv[1:]
    die_with_parent(int(parent_pid))
    give_way()
    # Ctrl-C reaches the whole process group; the server decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    import socket

    from app.engine.early_start import EarlyStart
    from app.messages import ToEngine
    from streaming.clock import boottime_s, exec_time_s
    from streaming.messages import PhaseTimed
    from streaming.wire import Connection, ConnectionClosed

    connection: Connection[ToEngine] = Connection(socket.socket(fileno=int(socket_fd)), ToEngine)
    early = EarlyStart(connection)
    import_start_s = boottime_s()
    gc.disable()  # nothing of an import is garbage, and looking for some takes a tenth of it
    from app.engine.startup import run_engine

    gc.freeze()
    gc.enable()

    try:
        connection.send(PhaseTimed(name="engine.exec", start_s=exec_time_s(), end_s=import_start_s))
        connection.send(PhaseTimed(name="engine.import", start_s=import_start_s, end_s=boottime_s()))
    except ConnectionClosed:
        return 0
    return run_engine(connection, early)


if __name__ == "__main__":
    sys.exit(main())
