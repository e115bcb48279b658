"""The server's side of the engine: submit a request's sequences, read their tokens, abort them.

Takes token ids and sampling parameters, gives tokens as the engine makes them. Knows no text, no HTTP
and no process: the supervisor attaches it to whichever engine is alive.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Self

from app.errors import EngineFailure, InvalidRequest, NotReady, Overloaded, ServiceError
from app.messages import (
    Abort,
    RequestFailed,
    SamplingParams,
    StepOutput,
    Submit,
    TokenOutput,
)

# A reader that fell behind gets its tokens in pieces: what it makes of them at once, text and JSON, stays small.
_MOST_TOKENS_AT_ONCE = 64


class EngineClient:
    """Routes the engine's steps to the requests that wait for them.

    Args:
        max_sequences: How many may be in the engine at once, waiting or running; more are refused.
    """

    def __init__(self, *, max_sequences: int):
        self._max_sequences = max_sequences
        self._routes: dict[str, tuple[Running, int]] = {}
        self._owed: set[str] = set()  # of those, what the engine has not ended: a slow reader's stay routed for longer
        self._send: Callable[[Submit | Abort], None] | None = None
        self._ids = itertools.count()
        self._idle = asyncio.Event()
        self._idle.set()
        self.generated_tokens = 0  # by every engine

    def attach(self, send: Callable[[Submit | Abort], None]) -> None:
        """An engine is ready; `send` writes to it without blocking."""
        self._send = send

    def detach(self, failure: ServiceError) -> None:
        """The engine is gone, or not to be asked any more: every request it had ends with this error."""
        self._send = None
        self._owed.clear()
        for running, _ in self._routes.values():
            running.fail(failure)

    @property
    def has_work(self) -> bool:
        """Whether the engine owes anybody tokens."""
        return bool(self._owed)

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
        if len(self._routes) + sequences > self._max_sequences:
            raise Overloaded("too many requests are waiting: try again later", retry_after_s=1.0)

    async def drained(self) -> None:
        """Return once every sequence has been read to its end or aborted."""
        await self._idle.wait()

    def deliver(self, message: StepOutput | RequestFailed) -> None:
        """Hand the engine's message to the requests that it names; those aborted meanwhile it had not heard of."""
        if isinstance(message, RequestFailed):
            self._owed.discard(message.request_id)
            if message.request_id in self._routes:
                running, _ = self._routes[message.request_id]
                self.forget(message.request_id)
                running.fail(EngineFailure(message.message))
            return
        self.generated_tokens += len(message.tokens)
        for token in message.tokens:
            if token.finish_reason is not None:
                self._owed.discard(token.request_id)
            route = self._routes.get(token.request_id)
            if route is not None:
                running, index = route
                running.put(index, token)

    def submit(self, sequences: Sequence[tuple[tuple[int, ...], SamplingParams]]) -> Running:
        """Generate prompts (token ids) side by side; to be left as a context, which aborts what still runs.

        Raises:
            NotReady: No engine is attached.
            InvalidRequest, Overloaded: As `check_room`.
        """
        if self._send is None:
            raise NotReady("the engine is not ready", retry_after_s=1.0)
        self.check_room(len(sequences))
        request_ids = [f"seq-{next(self._ids)}" for _ in sequences]
        running = Running(self, request_ids)
        self._routes |= {request_id: (running, index) for index, request_id in enumerate(request_ids)}
        self._owed.update(request_ids)
        self._idle.clear()
        for request_id, (prompt_token_ids, sampling) in zip(request_ids, sequences, strict=True):
            self._send(Submit(request_id, prompt_token_ids, sampling))
        return running

    def forget(self, request_id: str) -> None:
        """The engine has ended this sequence, and whoever waited for it knows."""
        self._routes.pop(request_id, None)
        self._owed.discard(request_id)
        if not self._routes:
            self._idle.set()

    def abort(self, request_id: str) -> None:
        """Nobody waits for this sequence any more; the engine is told, unless it has ended it."""
        if request_id in self._routes and self._send is not None:
            self._send(Abort(request_id))
        self.forget(request_id)


class Running:
    """The sequences of one request, by their position in it, and their tokens that nobody has read yet.

    One reader; while it is busy, at most `max_tokens` of each sequence wait here.
    """

    def __init__(self, client: EngineClient, request_ids: Iterable[str]):
        self._client = client
        self._request_ids = dict(enumerate(request_ids))
        self._arrived: deque[tuple[int, TokenOutput]] = deque()
        self._failure: ServiceError | None = None
        self._waiting: asyncio.Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for index in list(self._request_ids):
            self.abort(index)

    @property
    def unfinished(self) -> bool:
        """Whether there is anything to wait for."""
        return bool(self._request_ids)

    def put(self, index: int, token: TokenOutput) -> None:
        """A token has come; behind a failure it comes too late."""
        if self._failure is None:
            self._arrived.append((index, token))
            self._wake()

    def fail(self, failure: ServiceError) -> None:
        """No further token comes."""
        self._failure = self._failure or failure
        self._wake()

    async def tokens(self) -> Iterator[tuple[int, TokenOutput]]:
        """What has come since the last call, but at least one token, each with its sequence's position.

        Raises:
            ServiceError: The engine died or failed on one of the sequences, or the server ends, and all that came before
                has been read.
        """
        while not self._arrived:
            if self._failure is not None:
                raise self._failure
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        return self._taken(min(len(self._arrived), _MOST_TOKENS_AT_ONCE))

    def abort(self, index: int) -> None:
        """Read no more of this sequence."""
        request_id = self._request_ids.pop(index, None)
        if request_id is not None:
            self._client.abort(request_id)

    def _taken(self, count: int) -> Iterator[tuple[int, TokenOutput]]:
        for _ in range(count):
            index, token = self._arrived.popleft()
            if index in self._request_ids:
                if token.finish_reason is not None:
                    self._client.forget(self._request_ids.pop(index))
                yield index, token

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
