"""One step of the model: spans in, logits out. Knows no queue and no sampling."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol

import torch

from app.engine.batch import build_batch
from app.engine.kv_cache import KVCache
from app.engine.last_draw import LastDraw
from app.engine.models.language_model import LanguageModel
from app.engine.scheduler import Span


@dataclass(frozen=True)
class Computed:
    """What a step gives; the next one may overwrite both.

    `hidden` (tokens, hidden) means nothing where every span draws a token after its one.
    """

    logits: torch.Tensor  # (spans that sample, vocabulary)
    hidden: torch.Tensor


class Steps(Protocol):
    """Who computes them."""

    def run(self, spans: Seq[Span]) -> Computed:
        """Queue a step; the keys and values of its tokens go into the cache."""


class SDPASteps:
    """Steps with torch's own operations, each as large as it is.

    Args:
        model: Every parameter bound; values may still arrive.
        cache: Its blocks are the spans' sequences'.
        last_draw: Where tokens are that the host does not know yet.
    """

    def __init__(self, model: LanguageModel, cache: KVCache, last_draw: LastDraw):
        self._model = model
        self._cache = cache
        self._last_draw = last_draw

    def run(self, spans: Seq[Span]) -> Computed:
        """See `Steps.run`."""
        batch = build_batch(spans, self._cache, self._last_draw)
        hidden = self._model(batch.token_ids, batch.positions, batch.attention)
        return Computed(self._model.logits(hidden.index_select(0, batch.last_rows)), hidden)
