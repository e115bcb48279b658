"""The server's side of the engine: submit a sequence, read its tokens, abort it.

Takes token ids and sampling parameters, gives tokens as the engine makes them. Knows no text, no HTTP
and no process: the supervisor attaches it to whichever engine is alive.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable

from app.errors import EngineFailure, InvalidRequest, NotReady, Overloaded
from app.messages import (
    Abort,
    RequestFailed,
    SamplingParams,
    StepOutput,
    Submit,
    TokenOutput,
)

_Event = TokenOutput | EngineFailure


class EngineClient:
    """Routes the engine's steps to the requests that wait for them.

    Args:
        max_sequences: How many may be in the engine at once, waiting or running; more are refused.
    """

    def __init__(self, *, max_sequences: int):
        self._max_sequences = max_sequences
        self._queues: dict[str, asyncio.Queue[_Event]] = {}
        self._send: Callable[[Submit | Abort], None] | None = None
        self._ids = itertools.count()
        self._idle = asyncio.Event()
        self._idle.set()

    def attach(self, send: Callable[[Submit | Abort], None]) -> None:
        """An engine is ready; `send` writes to it without blocking."""
        self._send = send

    def detach(self, reason: str) -> None:
        """The engine is gone: every sequence it had ends with an error."""
        self._send = None
        for queue in self._queues.values():
            queue.put_nowait(EngineFailure(reason))

    def check_room(self, sequences: int, *, param: str | None = None) -> None:
        """Whether a request of so many sequences may begin, before anything is done for it.

        Raises:
            InvalidRequest: It never may.
            Overloaded: Not now.
        """
        if sequences > self._max_sequences:
            raise InvalidRequest(
                f"{sequences} sequences (prompts times n) are more than the server's {self._max_sequences}: "
                "split the request",
                param=param,
            )
        if len(self._queues) + sequences > self._max_sequences:
            raise Overloaded("too many requests are waiting: try again later", retry_after_s=1.0)

    async def drained(self) -> None:
        """Return once no sequence is in the engine any more."""
        await self._idle.wait()

    def deliver(self, message: StepOutput | RequestFailed) -> None:
        """Hand the engine's message to the requests that it names."""
        if isinstance(message, RequestFailed):
            self._put(message.request_id, EngineFailure(message.message))
            return
        for token in message.tokens:
            self._put(token.request_id, token)

    async def generate(
        self, prompt_token_ids: tuple[int, ...], sampling: SamplingParams
    ) -> AsyncGenerator[TokenOutput, None]:
        """Yield one sequence's tokens; closing the iterator early aborts it in the engine.

        Raises:
            NotReady: No engine is attached.
            Overloaded: Too many sequences are in the engine.
            EngineFailure: The engine died or failed on this sequence.
        """
        if self._send is None:
            raise NotReady("the engine is not ready", retry_after_s=1.0)
        self.check_room(1)
        request_id = f"seq-{next(self._ids)}"
        queue = self._queues[request_id] = asyncio.Queue()
        self._idle.clear()
        finished = False
        try:
            self._send(Submit(request_id, prompt_token_ids, sampling))
            while not finished:
                event = await queue.get()
                finished = isinstance(event, EngineFailure) or event.finish_reason is not None
                if isinstance(event, EngineFailure):
                    raise event
                yield event
        finally:
            del self._queues[request_id]
            if not self._queues:
                self._idle.set()
            if not finished and self._send is not None:
                self._send(Abort(request_id))

    def _put(self, request_id: str, event: _Event) -> None:
        queue = self._queues.get(request_id)
        if queue is not None:  # aborted meanwhile: the engine had not heard yet
            queue.put_nowait(event)
