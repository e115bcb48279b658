"""What the server says to the engine, in order; what only transformers knows is answered on the way.

Takes a connection, gives messages. Knows nothing of what the engine does with them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

from app.engine.tokenizer_conversion import convert_tokenizer
from app.messages import ConvertedTokenizer, ConvertTokenizer, DescribeModel, ToEngine
from streaming.clock import boottime_s
from streaming.messages import PhaseTimed
from streaming.wire import Connection

logger = logging.getLogger(__name__)

M = TypeVar("M")


class Inbox:
    """The engine's end of its connection, as a source of messages.

    Args:
        connection: To the server.
        first: What has been read from it already, with its descriptors.
        wait_for_torch: Returns once all of torch is imported, which transformers needs.
    """

    def __init__(
        self, connection: Connection[ToEngine], first: tuple[ToEngine, list[int]], wait_for_torch: Callable[[], None]
    ):
        self._connection = connection
        self._early = [first]
        self._wait_for_torch = wait_for_torch

    def wait_for(self, kind: type[M]) -> tuple[M, list[int]]:
        """Block until the server says `kind`; what it says before is out of turn and ignored.

        Raises:
            ConnectionClosed: The server is gone.
            ModelUnsupported: It asked for what transformers cannot do.
        """
        while True:
            message, fds = self._early.pop(0) if self._early else self._connection.recv()
            if isinstance(message, kind):
                return message, fds
            if not self._answered(message):
                logger.warning("ignored %s before %s", type(message).__name__, kind.__name__)

    def has_come(self, kind: type[M], *, timeout_s: float = 0.0) -> bool:
        """Whether the server has said `kind`, or anything within the timeout that is; it is kept for `wait_for`."""
        self._connection.poll(timeout_s)
        while received := self._connection.try_recv():
            self._early.append(received)
        return any(isinstance(message, kind) for message, _ in self._early)

    def receive(self, block: bool) -> Iterator[ToEngine]:
        """Every message that has arrived; with `block`, at least waits until something has.

        Raises:
            ConnectionClosed: The server is gone.
            ModelUnsupported: It asked for what transformers cannot do.
        """
        if block:
            self._connection.poll(None)
        while received := self._connection.try_recv():
            if not self._answered(received[0]):
                yield received[0]

    def _answered(self, message: ToEngine) -> bool:
        match message:
            case ConvertTokenizer(files=files):
                self._wait_for_torch()
                self._connection.send(ConvertedTokenizer(convert_tokenizer(files)))
            case DescribeModel():
                self._describe(message)
            case _:
                return False
        return True

    def _describe(self, request: DescribeModel) -> None:
        self._wait_for_torch()
        start_s = boottime_s()
        from app.engine.transformers_description import describe

        self._connection.send(PhaseTimed(name="engine.transformers", start_s=start_s, end_s=boottime_s()))
        self._connection.send(describe(request))
