"""Traces on their way out of the server: a short queue, a thread that writes, the exporter process behind it.

Takes finished traces from the event loop, which never waits: what does not fit the queue is dropped and counted. Knows no SDK.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

from app.child import Child
from app.telemetry.spans import Trace
from streaming.wire import encode

logger = logging.getLogger(__name__)

_MOST_WAITING = 256


class TraceExport:
    """The way to one exporter.

    Args:
        spawn: Starts it.
    """

    def __init__(self, spawn: Callable[[], Child]):
        self.dropped = 0
        self._spawn = spawn
        self._waiting: queue.Queue[Trace | None] = queue.Queue(_MOST_WAITING)
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._child: Child | None = None

    def start(self, *, delay_s: float = 0.0) -> None:
        """Begin to export; the exporter is started so much later, or when this is closed."""
        self._thread = threading.Thread(target=self._run, args=(delay_s,), name="trace-export", daemon=True)
        self._thread.start()

    def put(self, trace: Trace) -> None:
        """Queue a trace, or drop it."""
        try:
            self._waiting.put_nowait(trace)
        except queue.Full:
            self.dropped += 1

    def close(self, patience_s: float) -> None:
        """Let the exporter send what it has, for so long; then end it. Blocks."""
        deadline_s = time.monotonic() + patience_s
        if self._thread is None:
            return
        self._closing.set()
        try:
            self._waiting.put(None, timeout=patience_s)
        except queue.Full:
            logger.debug("the exporter reads nothing")
        self._thread.join(max(0.0, deadline_s - time.monotonic()))
        if self._thread.is_alive() and self._child is not None:
            logger.warning("traces: the collector did not take the last ones in time")
            self._child.kill()

    def _run(self, delay_s: float) -> None:
        self._closing.wait(delay_s)
        self._child = self._spawn()
        try:
            while (trace := self._waiting.get()) is not None:
                self._child.sock.sendall(encode(trace))
        except OSError:
            logger.warning("traces: the exporter is gone; no more traces are sent")
            self._child.kill()  # else it stays a zombie
            while self._waiting.get() is not None:
                self.dropped += 1
        # Here, because the kernel ends the exporter with the thread that started it, not only with the process.
        self._child.sock.close()
        self._child.process.wait()
