"""Everything the API needs, in one value: the hub's parts, wired by the supervisor.

Knows neither HTTP nor processes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from app.engine_client import EngineClient
from app.errors import NotReady
from app.lifecycle import Lifecycle, State
from app.sampling_defaults import SamplingDefaults
from app.telemetry.ledger import Ledger
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
    """How long a request may take from its submission on, and after how much silence a stream gets a comment.

    None is for ever and never.
    """

    deadline_s: float | None = None
    keep_alive_s: float | None = None


class Service:
    """The parts of a running server.

    Args:
        model_names: What clients may call the model; the first is the name in answers.
        patience: With requests that take long.
        report_first_token: Whether the process's first token is worth a line in the log.
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
        self.model: ServedModel | None = None
        self._report_first_token = report_first_token

    def first_token(self) -> None:
        """The first token of some sequence has reached the API; the process's first is a milestone."""
        now_s = boottime_s()
        if self.ledger.milestone("first_token_time", now_s) and self._report_first_token:
            logger.info("first token %.3f s after exec", now_s - self.ledger.exec_s)

    def ready_model(self) -> ServedModel:
        """The model, if a request may use it now.

        Raises:
            NotReady: It is loading, warming, draining or failed.
        """
        if self.lifecycle.state is not State.READY or self.model is None:
            raise NotReady(
                f"the model is not ready: {self.lifecycle.state.value}: {self.lifecycle.detail}",
                retry_after_s=self.lifecycle.retry_after_s(),
            )
        return self.model
