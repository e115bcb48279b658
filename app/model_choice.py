"""Who computes the model: our own decoder, or a class of transformers, which only an engine can describe.

Takes what the loader found, gives the model as it will be laid out, or the reason to refuse it before a weight byte
moves. Knows neither settings but the dtype, nor where an answer comes from.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from app.described_model import described_support, description_request
from app.messages import DescribedModel, DescribeModel
from app.model_support import NoFamily, SupportedModel, support
from streaming.errors import ErrorReport, StreamingError, report
from streaming.messages import Described

logger = logging.getLogger(__name__)


class ModelChoice:
    """One server's.

    Args:
        dtype: What the weights are to be stored as; "auto" is their own.
        ask: Puts a question about transformers to the engine, which `answered` answers.
        on_chosen: Called with the checkpoint and its model; may raise a StreamingError.
        on_failed: Called with the reason when nobody computes it.
    """

    def __init__(
        self,
        dtype: str,
        *,
        ask: Callable[[DescribeModel], None],
        on_chosen: Callable[[Described, SupportedModel], None],
        on_failed: Callable[[ErrorReport], None],
    ):
        self._dtype = dtype
        self._ask = ask
        self._on_chosen = on_chosen
        self._on_failed = on_failed
        self._asked: tuple[Described, DescribeModel] | None = None

    def described(self, described: Described) -> None:
        """Choose; what is not ours transformers is asked about."""
        try:
            self._on_chosen(described, support(described.files, described.entries, dtype=self._dtype))
        except NoFamily as reason:
            logger.info("not for our own decoder: %s", reason)
            self._ask_transformers(described)
        except StreamingError as error:
            self._on_failed(report(error))

    def answered(self, answer: DescribedModel) -> None:
        """Choose what transformers' class wants."""
        assert self._asked is not None  # this is the answer
        (described, request), self._asked = self._asked, None
        try:
            self._on_chosen(described, described_support(described.files, described.entries, request, answer))
        except StreamingError as error:
            self._on_failed(report(error))

    def _ask_transformers(self, described: Described) -> None:
        try:
            request = description_request(described.files, described.entries, dtype=self._dtype)
        except StreamingError as error:
            self._on_failed(report(error))
            return
        is_waiting = self._asked is not None  # a loader that is followed by another describes the same again
        self._asked = described, request
        if not is_waiting:
            self._ask(request)
