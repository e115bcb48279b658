"""A child process that is replaced when it dies, up to three times, and the channel to whichever lives.

Takes callbacks, gives messages. Knows nothing of what a new child has to be told: that is `on_replaced`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from app.channel import Channel, OnMessage
from app.child import Child
from streaming.errors import ErrorReport

logger = logging.getLogger(__name__)

_MAX_RESTARTS = 3


class KeptChild:
    """One role, over as many processes as it takes.

    Args:
        child: The first process.
        incoming: The union of message types that it sends.
        respawn: Starts another one.
        on_message: Called with each message and the descriptors that came with it.
        on_replaced: Called when another process has taken the place of one that died.
        on_lost: Called with the reason when that has happened too often.
        on_error: Called when one of the others raised.
    """

    def __init__(
        self,
        child: Child,
        incoming: Any,
        *,
        respawn: Callable[[], Child],
        on_message: OnMessage,
        on_replaced: Callable[[], None],
        on_lost: Callable[[ErrorReport], None],
        on_error: Callable[[Exception], None],
    ):
        self.restarts = 0
        self._incoming = incoming
        self._respawn = respawn
        self._on_message = on_message
        self._on_replaced = on_replaced
        self._on_lost = on_lost
        self._on_error = on_error
        self._retired = False
        self._watch(child)

    def send(self, message: msgspec.Struct, fds: Sequence[int] = ()) -> None:
        """Queue a message to the process that lives now."""
        self._channel.send(message, fds)

    def retire(self) -> None:
        """Its work is done: it may end, and is not replaced."""
        self._retired = True

    def close(self) -> None:
        """End it now."""
        self.retire()
        self._channel.close()
        self._child.kill()

    def _watch(self, child: Child) -> None:
        self._child = child
        self._channel = Channel(
            child, self._incoming, on_message=self._on_message, on_closed=self._replace, on_error=self._on_error
        )

    def _replace(self) -> None:
        self._child.kill()
        if self._retired:
            return
        name = self._child.module
        if self.restarts == _MAX_RESTARTS:
            self.retire()
            message = f"{name} died {_MAX_RESTARTS + 1} times: its own messages, if it left any, are above"
            self._on_lost(ErrorReport("ProcessLost", message, 6))
            return
        self.restarts += 1
        logger.warning("%s died (exit %s): starting another one", name, self._child.process.returncode)
        self._watch(self._respawn())
        self._on_replaced()
