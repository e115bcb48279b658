"""One probe as a kubelet asks it: what counts as success, and how many answers in a row make a verdict.

Takes a port and a path, gives yes or no. Knows no container.
"""

from __future__ import annotations

import http.client
import time

from tests.pod_spec import Probe


class Tally:
    """Answers of one probe, until as many in a row agree as its threshold asks for."""

    def __init__(self, probe: Probe):
        self._thresholds = {True: probe.success_threshold, False: probe.failure_threshold}
        self._last: bool | None = None
        self._run = 0

    def add(self, success: bool) -> bool | None:
        """The verdict after one more answer; None where it stays as it was."""
        self._run = self._run + 1 if success is self._last else 1
        self._last = success
        return success if self._run >= self._thresholds[success] else None


def is_success(port: int, path: str, timeout_s: float) -> bool:
    """Whether one probe succeeds: an answer in time, with a status of 200 to 399, over a connection of its own."""
    deadline_s = time.monotonic() + timeout_s
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", path, headers={"user-agent": "kube-probe/1.30", "connection": "close"})
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return 200 <= status < 400 and time.monotonic() <= deadline_s
