"""One HTTP request as it is watched.

Pure values; knows neither a framework nor who is told of them.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from app.telemetry.spans import RequestTrace


class HttpRequest(msgspec.Struct, frozen=True, kw_only=True):
    """An answered request; times are seconds of CLOCK_BOOTTIME, `route` is the path's template or empty."""

    method: str
    route: str
    path: str
    status: int
    start_s: float
    end_s: float
    scheme: str = "http"
    client_address: str | None = None
    request_id: str | None = None
    trace: RequestTrace | None = None


HttpObserver = Callable[[HttpRequest], None]
