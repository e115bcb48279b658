"""One step of the model: spans in, drawn tokens out.

Takes what the scheduler chose; the KV cache is its only state. Knows no message and no queue.
"""

from __future__ import annotations

import torch

from app.engine.batch import build_batch
from app.engine.kv_cache import KVCache
from app.engine.models.decoder import Decoder
from app.engine.sampler import Draw, sample
from app.engine.scheduler import Span


class ModelRunner:
    """A bound model and its cache.

    Args:
        model: Every parameter bound; values may still arrive.
        cache: Blocks of `block_size_tokens`, which the spans' sequences own.
    """

    def __init__(self, model: Decoder, cache: KVCache, block_size_tokens: int):
        self._model = model
        self._cache = cache
        self._block_size_tokens = block_size_tokens

    @torch.inference_mode()
    def logits(self, spans: list[Span]) -> torch.Tensor:
        """Compute `spans`; the logits (sampling spans, vocabulary) of those that sample."""
        batch = build_batch(spans, self._cache, self._block_size_tokens)
        hidden = self._model(batch.token_ids, batch.positions, batch.attention)
        return self._model.logits(hidden[batch.last_rows])

    @torch.inference_mode()
    def run(self, spans: list[Span]) -> list[int | None]:
        """Compute `spans` and draw a token for each that samples; None where its logits are not finite."""
        logits = self.logits(spans)
        draws = [Draw(span.sequence.sampling, span.sequence.seed, position=span.end) for span in spans if span.samples]
        return sample(logits, draws) if draws else []
