"""Asks a server the same question over and over, from before it listens, and keeps every answer's time.

Takes a port; knows no server's insides. A connection per probe, as a kubelet makes them.
"""

from __future__ import annotations

import http.client
import statistics
import threading
import time
from types import TracebackType
from typing import Self

_PERIOD_S = 0.01


class Prober:
    """Probes GET `path` until it is stopped.

    Latencies are seconds from the connection's start to the end of the answer, kept from the first 200
    onwards; an answer that is no 200 after that, or none, counts as a failure.
    """

    def __init__(self, port: int, path: str):
        self._port = port
        self._path = path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.first_200_s: float | None = None
        self.latencies_s: list[float] = []
        self.failures = 0

    def __enter__(self) -> Self:
        """Start to ask."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ask no more."""
        self._stop.set()
        self._thread.join()

    def figures_ms(self) -> dict[str, float]:
        """Median, 99th percentile and most of the latencies, and how many there were.

        Raises:
            RuntimeError: A probe failed, or there was none.
        """
        if self.failures or not self.latencies_s:
            raise RuntimeError(f"{self.failures} of {len(self.latencies_s)} probes of {self._path} failed")
        ordered = sorted(latency_s * 1e3 for latency_s in self.latencies_s)
        return {
            "p50_ms": statistics.median(ordered),
            "p99_ms": ordered[int(len(ordered) * 0.99)],
            "max_ms": ordered[-1],
            "probes": len(ordered),
        }

    def _run(self) -> None:
        while not self._stop.wait(_PERIOD_S):
            start_s = time.monotonic()
            answered = get_status(self._port, self._path) == 200
            if self.first_200_s is None:
                self.first_200_s = time.clock_gettime(time.CLOCK_BOOTTIME) if answered else None
                continue
            self.latencies_s.append(time.monotonic() - start_s)
            self.failures += not answered


def get_status(port: int, path: str) -> int | None:
    """The status of one GET, None where nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except OSError:
        return None
    finally:
        connection.close()
