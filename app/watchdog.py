"""Notices that another process is silent although it owes something.

Takes what is owed and a callback; knows no process and no message.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_PERIOD_S = 0.5


class Watchdog:
    """One of them per child.

    Args:
        patience_s: How many seconds of silence are allowed now; None while nothing is owed.
        on_silence: Called with that limit when it is over; again after as long, if the silence goes on.
    """

    def __init__(self, patience_s: Callable[[], float | None], on_silence: Callable[[float], None]):
        self._patience_s = patience_s
        self._on_silence = on_silence
        self._silence_s = 0.0
        self._looked_s = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(_PERIOD_S, self._look)

    def heard(self) -> None:
        """The other one has spoken; called for every message, so it costs next to nothing."""
        self._silence_s = 0.0

    def close(self) -> None:
        """Watch no more."""
        self._timer.cancel()

    def _look(self) -> None:
        self._timer = self._loop.call_later(_PERIOD_S, self._look)
        now_s = time.monotonic()
        # Who was frozen itself, with the whole pod perhaps, has heard nobody meanwhile.
        self._silence_s += min(now_s - self._looked_s, 2 * _PERIOD_S)
        self._looked_s = now_s
        patience_s = self._patience_s()
        if patience_s is None:
            self.heard()  # what is owed from now on is owed since now
        elif self._silence_s >= patience_s:
            self.heard()
            self._on_silence(patience_s)
