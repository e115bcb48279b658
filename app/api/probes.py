"""What kubelet, load balancers and people ask the server about itself.

Takes the lifecycle and the ledger, gives their state at this moment. Plain functions without FastAPI: they
answer while it is still being imported, never wait for anything and need no key. Knows no socket.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from app.lifecycle import State
from app.service import Service
from streaming.clock import boottime_s


class Answer(NamedTuple):
    """A status, a body and headers beside its type and length."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    content_type: bytes = b"application/json"


def livez(service: Service) -> Answer:
    """200 while the process can work, also while it loads or drains."""
    state = service.lifecycle.state
    return Answer(503 if state is State.FAILED else 200, msgspec.json.encode({"state": state}))


def health(service: Service) -> Answer:
    """200 once loaded and warm, else 503 with how far it is and when to ask again."""
    lifecycle = service.lifecycle
    body = msgspec.json.encode(lifecycle.health())
    if lifecycle.state is State.READY:
        return Answer(200, body)
    return Answer(503, body, ((b"retry-after", b"%d" % lifecycle.retry_after_s()),))


def startupz(service: Service) -> Answer:
    """The startup ledger so far, and the moment that this is, in its own seconds since exec."""
    ledger = service.ledger
    now_s = round(boottime_s() - ledger.exec_s, 3)
    return Answer(200, msgspec.json.encode({"state": service.lifecycle.state, "now_s": now_s, **ledger.as_dict()}))


METRICS = "/metrics"
PROBES: Mapping[str, Callable[[Service], Answer]] = {
    "/livez": livez,
    "/health": health,
    "/readyz": health,
    "/startupz": startupz,
}
