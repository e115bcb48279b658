"""A port for a server that is about to start. Knows nothing of the server."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket

# Below those that Linux gives to outgoing connections, one of which could take the port before its server does.
_PORTS = range(12_000, 32_000)
# Each process walks on from a place of its own: two that look at once find different ones.
_offsets = itertools.count(random.SystemRandom().randrange(len(_PORTS)))


def free_port() -> int:
    """A port of the loopback address that nobody listens on now; another one for each call."""
    while True:
        port = _PORTS[next(_offsets) % len(_PORTS)]
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
