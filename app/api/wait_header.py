"""The request header by which a client says how long it waits for a server that is not ready.

Takes the header's text, gives seconds. Knows nothing of what is waited for.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Header

# Longer than any load; what is meant as milliseconds is above it.
_MAX_WAIT_S = 3600

WaitHeader = Annotated[
    float | None,
    Header(
        alias="X-Coldstream-Wait",
        ge=0,
        le=_MAX_WAIT_S,
        allow_inf_nan=False,
        description="Seconds to wait for a server that is not ready; 0 is not at all. Without it, the server's setting.",
    ),
]
