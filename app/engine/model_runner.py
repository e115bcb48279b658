"""One step of the model: spans in, drawn tokens out, some time later.

Takes what the scheduler chose; its state is the KV cache, the tokens drawn last and what the sampler keeps of the last
batch. Knows no queue.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from app.engine.batch import build_batch
from app.engine.graphs import DecodeGraphs
from app.engine.kv_cache import KVCache
from app.engine.last_draw import LastDraw
from app.engine.models.language_model import LanguageModel
from app.engine.sampling.logprobs import PromptScores, score_prompt
from app.engine.sampling.sampler import PendingDraw, Sampler
from app.engine.scheduler import Span


class ModelRunner:
    """A bound model and its cache.

    Args:
        model: Every parameter bound; values may still arrive.
        cache: Its blocks are the spans' sequences'.
        may_capture: Whether CUDA graphs can be captured already.
    """

    def __init__(self, model: LanguageModel, cache: KVCache, *, may_capture: Callable[[], bool] = lambda: True):
        self._model = model
        self._cache = cache
        self._may_capture = may_capture
        self._sampler = Sampler()
        # Every sequence of a step has a block that nobody shares, for its last token.
        self._last_draw = LastDraw(cache.scratch_slot // cache.block_size_tokens, cache.device)
        self._graphs = DecodeGraphs(model, cache) if cache.device.type == "cuda" and model.may_be_captured else None

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
        return self._compute(spans)[0]

    @torch.inference_mode()
    def launch(self, spans: list[Span]) -> PendingDraw:
        """Queue the computation of `spans` and the draw of a token for each that samples.

        Where a sequence's last token is unknown it is what the launch before this one draws. Sequences that need
        prompt logits have their prompt logprobs extended by what their spans predict, once that is collected.
        """
        logits, prompts = self._compute(spans)
        sampled = [span.sequence for span in spans if span.samples]
        draw = self._sampler.launch(logits, sampled, prompts)
        self._last_draw.keep(sampled, draw.token_ids)
        return draw

    def _compute(self, spans: list[Span]) -> tuple[torch.Tensor, list[PromptScores]]:
        """The logits of the spans that sample, and scores of the prompts that need them."""
        if self._graphs is not None and self._graphs.takes(spans) and self._may_capture():
            return self._graphs.logits(spans), []  # a span that samples after one token predicts no prompt token
        batch = build_batch(spans, self._cache, self._last_draw)
        hidden = self._model(batch.token_ids, batch.positions, batch.attention)
        return self._model.logits(hidden.index_select(0, batch.last_rows)), self._score_prompts(spans, hidden)

    def _score_prompts(self, spans: list[Span], hidden: torch.Tensor) -> list[PromptScores]:
        """Scores of the prompt tokens that hidden states (tokens, hidden) predict, where they are asked for."""
        if not any(span.sequence.needs_prompt_logits for span in spans):
            return []
        parts = torch.split(hidden, [span.end - span.start for span in spans])
        return [
            score_prompt(span.sequence, span.start, span.end, part, self._model.logits)
            for span, part in zip(spans, parts, strict=True)
            if span.sequence.needs_prompt_logits
        ]
