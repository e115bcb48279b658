"""The engine process: `python -P -m app.engine FD PARENT_PID [LOG_LEVEL]`.

FD is a Unix socket to the server. Whatever can wait is imported after torch's own seconds are on the clock.
"""

from __future__ import annotations

import signal
import sys

from streaming.process import die_with_parent, give_way


def main() -> int:
    """Import torch, say how long it took, and be the engine."""
    socket_fd, parent_pid, *log_level = sys.argv[1:]
    die_with_parent(int(parent_pid))
    give_way()
    # Ctrl-C reaches the whole process group; the server decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    import socket

    from app.messages import ToEngine
    from app.telemetry.logs import configure
    from streaming.clock import boottime_s, exec_time_s
    from streaming.messages import PhaseTimed
    from streaming.wire import Connection, ConnectionClosed

    configure(*log_level or ("info",))
    connection: Connection[ToEngine] = Connection(socket.socket(fileno=int(socket_fd)), ToEngine)
    import_start_s = boottime_s()
    from app.engine.startup import run_engine

    try:
        connection.send(PhaseTimed(name="engine.exec", start_s=exec_time_s(), end_s=import_start_s))
        connection.send(PhaseTimed(name="engine.import", start_s=import_start_s, end_s=boottime_s()))
    except ConnectionClosed:
        return 0
    return run_engine(connection)


if __name__ == "__main__":
    sys.exit(main())
