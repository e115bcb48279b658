"""A source that stops answering in the middle of a load, and goes on when a test says so. Knows no server."""

from __future__ import annotations

import threading

from tools.blob_server import BlobRequest

# Longer than any test waits: whoever forgot to open it does not hang for ever.
_FORGOTTEN_S = 60


class Valve:
    """A hook that holds ranged reads of weights while it is shut; `passes` are let through first."""

    def __init__(self, passes: int = 0):
        self.passes = passes
        self.opened = threading.Event()
        self._lock = threading.Lock()

    def __call__(self, request: BlobRequest) -> None:
        """Hold the request, as a dead connection would."""
        if not request.path.endswith(".safetensors") or request.start == 0:
            return
        with self._lock:
            self.passes -= 1
            waits = self.passes < 0
        if waits:
            self.opened.wait(_FORGOTTEN_S)
