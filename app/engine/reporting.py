"""How full the engine is, told to the server every now and then.

Takes a snapshot's source and a clock; knows neither scheduler nor tensors. A step costs it one look at the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from app.messages import DeviceUse, EngineStats

INTERVAL_S = 0.25


class Reporting:
    """Sends what has changed.

    Args:
        stats: The scheduler's part of a snapshot.
        send: Tells the server.
        device_memory: Free and whole memory of the device in bytes; None where it is not a GPU.
        clock: Seconds.
    """

    def __init__(
        self,
        stats: Callable[[], EngineStats],
        send: Callable[[EngineStats], None],
        *,
        device_memory: Callable[[], tuple[int, int]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._stats = stats
        self._send = send
        self._device_memory = device_memory
        self._clock = clock
        self._next_s = 0.0
        self._told: EngineStats | None = None
        self._peak_bytes = 0

    def tick(self) -> None:
        """Tell, if it is time to; for every step."""
        if self._clock() >= self._next_s:
            self.tell()

    def tell(self) -> None:
        """Tell now, unless nothing has changed; for when nothing will for a while."""
        self._next_s = self._clock() + INTERVAL_S
        stats = msgspec.structs.replace(self._stats(), device=self._device())
        if stats != self._told:
            self._told = stats
            self._send(stats)

    def _device(self) -> DeviceUse | None:
        if self._device_memory is None:
            return None
        free_bytes, total_bytes = self._device_memory()
        used_bytes = total_bytes - free_bytes
        self._peak_bytes = max(self._peak_bytes, used_bytes)
        return DeviceUse(total_bytes=total_bytes, used_bytes=used_bytes, peak_bytes=self._peak_bytes)
