"""One request for text as it is watched: when it came, began and ended, and how.

Takes marks from the API (seconds of CLOCK_BOOTTIME), gives one `WatchedRequest` to every observer. Knows neither metrics
nor traces, and costs a token nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import msgspec

from app.errors import ServiceError
from app.telemetry.spans import RequestTrace
from streaming.clock import boottime_s

CHAT, COMPLETION = "chat", "text_completion"
_CANCELLED = "cancelled"


class WatchedRequest(msgspec.Struct, kw_only=True):
    """What is known of a request for text once it has ended.

    `operation` is `CHAT` or `COMPLETION`. `ready_s` is when the server became ready that it had to wait for;
    `scheduled_s` when the engine began with its first sequence,
    `first_token_s` when a token had come; None where that never happened. `prompt_tokens` and `cached_tokens` are of the
    sequences that began, `usage_cached_tokens` of each prompt's first, `output_tokens` of all. The process's first token for a client is in the one that `is_first_answer`. `error` is None where all went well. `parameters` are the request's own,
    by their names in OpenTelemetry's conventions.
    """

    operation: str
    model: str
    served_model: str
    arrived_s: float
    choices: int
    parameters: dict[str, Any] = {}
    trace: RequestTrace | None = None
    ready_s: float | None = None
    scheduled_s: float | None = None
    first_token_s: float | None = None
    ended_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    usage_cached_tokens: int = 0
    output_tokens: int = 0
    finish_reasons: list[str] = []
    error: str | None = None
    is_first_answer: bool = False


Observer = Callable[[WatchedRequest], None]


class Watch:
    """A context around one request's generation; leaving it tells the observers.

    Args:
        request: Filled in here.
        observers: Told once, at the end.
    """

    def __init__(self, request: WatchedRequest, observers: Sequence[Observer]):
        self.request = request
        self._observers = observers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: TracebackType | None) -> None:
        request = self.request
        request.ended_s = boottime_s()
        if error is not None:
            request.error = _error_type(error)
        for observe in self._observers:
            observe(request)

    def began(
        self,
        prompt_tokens: int,
        cached_tokens: int,
        scheduled_s: float | None,
        *,
        is_first_choice: bool,
        is_first_of_all: bool,
    ) -> None:
        """A sequence's first token has come; it may be its prompt's first choice, or the process's first token."""
        request = self.request
        request.is_first_answer |= is_first_of_all
        if request.first_token_s is None:
            request.first_token_s = boottime_s()
            request.scheduled_s = scheduled_s
        request.prompt_tokens += prompt_tokens
        request.cached_tokens += cached_tokens
        if is_first_choice:
            request.usage_cached_tokens += cached_tokens

    def ended(self, finish_reason: str) -> None:
        """A choice has its last token."""
        self.request.finish_reasons.append(finish_reason)


def _error_type(error: BaseException) -> str:
    """A name out of few: what is closed early has lost its reader, or its time was up."""
    if isinstance(error, ServiceError):
        return error.code or error.type
    if isinstance(error, Exception):
        return "server_error"
    return _CANCELLED
