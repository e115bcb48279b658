"""The engine process: `python -P -m app.engine FD PARENT_PID [patient]`.

FD is a Unix socket to the server. While torch is imported in one thread, another hears what to bind and starts
the GPU, and the engine begins as soon as torch's core is there; a patient one waits for all of torch.
"""

from __future__ import annotations

import os
import signal
import sys

from streaming.process import die_with_parent, give_way


def main() -> int:
    """Import torch, say how long it took, and be the engine."""
    socket_fd, parent_pid, *patience = sys.argv[1:]
    die_with_parent(int(parent_pid))
    give_way()
    # Ctrl-C reaches the whole process group; the server decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    from app.engine.torch_import import TorchImport
    from streaming.clock import boottime_s, exec_time_s

    import_start_s = boottime_s()
    torch_import = TorchImport(stops_at_core=not patience)
    import socket

    from app.engine.early_start import EarlyStart
    from app.messages import ToEngine
    from streaming.messages import PhaseTimed
    from streaming.wire import Connection, ConnectionClosed

    connection: Connection[ToEngine] = Connection(socket.socket(fileno=int(socket_fd)), ToEngine)
    early = EarlyStart(connection)
    try:
        torch_import.wait_for_core(on_gpu=early.is_on_gpu())
        from app.engine.startup import run_engine

        connection.send(PhaseTimed(name="engine.exec", start_s=exec_time_s(), end_s=import_start_s))
        connection.send(PhaseTimed(name="engine.import", start_s=import_start_s, end_s=boottime_s()))
    except ConnectionClosed:
        return 0
    return run_engine(connection, early, torch_import)


if __name__ == "__main__":
    code = main()
    # Nothing here is to be saved; tearing down torch costs time, and more where it is still being imported.
    sys.stderr.flush()
    os._exit(code)
