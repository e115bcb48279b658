"""Everything the API needs, in one value: the hub's parts, wired by the supervisor.

Knows neither HTTP nor processes.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from app.engine_client import EngineClient
from app.lifecycle import Lifecycle, State
from app.sampling_defaults import SamplingDefaults
from app.telemetry.engine_load import EngineLoad
from app.telemetry.http_requests import HttpObserver
from app.telemetry.ledger import Ledger
from app.telemetry.names import FIRST_ANSWER
from app.telemetry.requests import Observer, Watch, WatchedRequest
from app.telemetry.spans import RequestTrace
from app.waiting_room import WaitingRoom, not_ready
from streaming.clock import boottime_s

if TYPE_CHECKING:
    from app.text.text_model import TextModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedModel:
    """The model as clients see it; exists once the server is ready. `dtype` is that of its weights ("BF16")."""

    text: TextModel
    max_model_len_tokens: int
    vocab_size: int
    stop_token_ids: tuple[int, ...]
    created_s: int
    dtype: str
    defaults: SamplingDefaults = field(default_factory=SamplingDefaults)


@dataclass(frozen=True)
class Patience:
    """With requests that take long.

    Args:
        deadline_s: How long one may take from its submission on; None is for ever.
        keep_alive_s: After how much silence a stream gets a comment; None is never.
        until_ready_s: How long one waits for a server that is not ready, unless it says so itself; 0 is not at all.
        max_held_requests: How many may do so at once.
    """

    deadline_s: float | None = None
    keep_alive_s: float | None = None
    until_ready_s: float = 0.0
    max_held_requests: int = 64


class Service:
    """The parts of a running server.

    Args:
        model_names: What clients may call the model; the first is the name in answers.
        patience: With requests that take long.
        report_first_token: Whether the process's first token is worth a line in the log.

    `active_requests` are counted by method and scheme.
    """

    def __init__(
        self,
        *,
        model_names: tuple[str, ...],
        lifecycle: Lifecycle,
        ledger: Ledger,
        engine: EngineClient,
        patience: Patience | None = None,
        report_first_token: bool = False,
    ):
        self.model_names = model_names
        self.lifecycle = lifecycle
        self.ledger = ledger
        self.engine = engine
        self.patience = patience or Patience()
        self.waiting_room = WaitingRoom(lifecycle, max_requests=self.patience.max_held_requests)
        self.load = EngineLoad()
        self.observers: list[Observer] = []
        self.http_observers: list[HttpObserver] = []
        self.active_requests: Counter[tuple[str, str]] = Counter()
        self.begin_trace: Callable[[str, str], RequestTrace | None] = lambda _parent, _state: None
        self.dropped_traces: Callable[[], int] = lambda: 0
        self.model: ServedModel | None = None
        self._report_first_token = report_first_token

    def watch(self, request: WatchedRequest) -> Watch:
        """A context around a request's generation, at whose end the observers are told of it."""
        return Watch(request, self.observers)

    def first_token(self) -> bool:
        """Some sequence's first token has reached the API; the first one of all is a milestone, told by True."""
        now_s = boottime_s()
        is_first = self.ledger.milestone(FIRST_ANSWER, now_s)
        if is_first and self._report_first_token:
            logger.info("first token %.3f s after exec", now_s - self.ledger.exec_s)
        return is_first

    @property
    def is_going_away(self) -> bool:
        """Whether it drains or has failed: no connection is worth keeping then."""
        return self.lifecycle.state in (State.DRAINING, State.FAILED)

    async def model_within(self, wait_s: float | None) -> ServedModel:
        """The model, once it is ready; None waits for as long as `patience` says.

        Raises:
            NotReady: As `WaitingRoom.until_ready`.
        """
        await self.waiting_room.until_ready(self.patience.until_ready_s if wait_s is None else wait_s)
        return self.ready_model()

    def ready_model(self) -> ServedModel:
        """The model, if a request may use it now.

        Raises:
            NotReady: It is loading, warming, draining or failed.
        """
        if self.lifecycle.state is not State.READY or self.model is None:
            raise not_ready(self.lifecycle)
        return self.model
