"""One step of the model: spans in, drawn tokens out.

Takes what the scheduler chose; the KV cache is its only state. Knows no message and no queue.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from app.engine.batch import build_batch
from app.engine.graphs import DecodeGraphs
from app.engine.kv_cache import KVCache
from app.engine.models.decoder import Decoder
from app.engine.sampler import Draw, sample
from app.engine.scheduler import Span


class ModelRunner:
    """A bound model and its cache.

    Args:
        model: Every parameter bound; values may still arrive.
        cache: Its blocks are the spans' sequences'.
        may_capture: Whether CUDA graphs can be captured already.
    """

    def __init__(self, model: Decoder, cache: KVCache, *, may_capture: Callable[[], bool] = lambda: True):
        self._model = model
        self._cache = cache
        self._may_capture = may_capture
        self._graphs = DecodeGraphs(model, cache) if cache.device.type == "cuda" else None

    @property
    def uses_graphs(self) -> bool:
        """Whether decode steps are CUDA graphs here."""
        return self._graphs is not None

    @torch.inference_mode()
    def capture_first_graph(self) -> None:
        """Make the first decode step as fast as the later ones, where graphs are used at all."""
        if self._graphs is not None:
            self._graphs.capture_first()

    @torch.inference_mode()
    def logits(self, spans: list[Span]) -> torch.Tensor:
        """Compute `spans`; the logits (sampling spans, vocabulary) of those that sample."""
        if self._graphs is not None and self._graphs.takes(spans) and self._may_capture():
            return self._graphs.logits(spans)
        batch = build_batch(spans, self._cache)
        hidden = self._model(batch.token_ids, batch.positions, batch.attention)
        return self._model.logits(hidden[batch.last_rows])

    @torch.inference_mode()
    def run(self, spans: list[Span]) -> list[int | None]:
        """Compute `spans` and draw a token for each that samples; None where its logits are not finite."""
        logits = self.logits(spans)
        draws = [Draw(span.sequence.sampling, span.sequence.seed, position=span.end) for span in spans if span.samples]
        return sample(logits, draws) if draws else []
