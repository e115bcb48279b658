"""How full the engine is, told to the server every now and then.

Takes a snapshot's source and a clock; knows neither scheduler nor tensors. A step costs it one look at the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from app.engine.device_memory import DeviceMemory
from app.messages import EngineStats

INTERVAL_S = 0.25


class Reporting:
    """Sends what has changed.

    Args:
        stats: The scheduler's part of a snapshot.
        send: Tells the server.
        device: The GPU's memory; None where there is no GPU.
        clock: Seconds.
    """

    def __init__(
        self,
        stats: Callable[[], EngineStats],
        send: Callable[[EngineStats], None],
        *,
        device: DeviceMemory | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._stats = stats
        self._send = send
        self._device = device
        self._clock = clock
        self._next_s = 0.0
        self._told: EngineStats | None = None

    def tick(self) -> None:
        """Tell, if it is time to; for every step."""
        if self._clock() >= self._next_s:
            self.tell()

    def tell(self) -> None:
        """Tell now, unless nothing has changed; for when nothing will for a while."""
        self._next_s = self._clock() + INTERVAL_S
        stats = msgspec.structs.replace(self._stats(), device=self._device and self._device.use())
        if stats != self._told:
            self._told = stats
            self._send(stats)
