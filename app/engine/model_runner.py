"""One step of the model: spans in, drawn tokens out, some time later.

Takes what the scheduler chose; its state is the KV cache, the tokens drawn last and what the sampler keeps of the last
batch. Knows no queue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from app.engine.kv_cache import KVCache
from app.engine.last_draw import LastDraw
from app.engine.models.language_model import LanguageModel
from app.engine.sampling.logprobs import PromptScores, score_prompt
from app.engine.sampling.sampler import PendingDraw, Sampler
from app.engine.scheduler import Span
from app.engine.steps import SDPASteps, Steps

if TYPE_CHECKING:
    from app.engine.gpu_steps import GPUSteps
    from app.engine.step_shapes import Limits


class ModelRunner:
    """A bound model and its cache.

    Args:
        model: Every parameter bound; values may still arrive.
        cache: Its blocks are the spans' sequences'.
    """

    def __init__(self, model: LanguageModel, cache: KVCache):
        self._model = model
        self._cache = cache
        self._sampler = Sampler()
        # Every sequence of a step has a block that nobody shares, for its last token.
        self._last_draw = LastDraw(cache.scratch_slot // cache.block_size_tokens, cache.device)
        self._steps: Steps = SDPASteps(model, cache, self._last_draw)
        self._gpu_steps: GPUSteps | None = None

    @torch.inference_mode()
    def use_kernels(self, limits: Limits) -> None:
        """Compile the GPU's kernels and use them from then on. Takes seconds; in any thread, all of torch imported.

        Raises:
            ImportError: There is no Triton.
            Exception: Whatever Triton raises where it cannot compile, for want of a C compiler, say.
        """
        from app.engine.gpu_steps import GPUSteps

        steps = GPUSteps(self._model, self._cache, self._last_draw, limits)
        steps.compile()
        self._steps = self._gpu_steps = steps

    @property
    def launches_quickly(self) -> bool:
        """Whether a step is launched before the one before it has been computed: a graph is, hundreds of kernels are not."""
        return self._gpu_steps is not None and self._model.max_captured_tokens != 0

    def check(self) -> None:
        """After an error on a GPU: raise it again if it has ended the process' use of the GPU, as most but a lack of memory do."""
        if self._cache.device.type == "cuda":
            torch.cuda.synchronize(self._cache.device)

    @torch.inference_mode()
    def capture_next_graph(self) -> bool:
        """Capture one of the CUDA graphs that later steps will need; whether there was one to capture."""
        return self._gpu_steps is not None and self._gpu_steps.capture_next()

    @torch.inference_mode()
    def logits(self, spans: list[Span]) -> torch.Tensor:
        """Compute `spans`; the logits (sampling spans, vocabulary) of those that sample."""
        return self._steps.run(spans).logits

    @torch.inference_mode()
    def launch(self, spans: list[Span]) -> PendingDraw:
        """Queue the computation of `spans` and the draw of a token for each that samples.

        Where a sequence's last token is unknown it is what the launch before this one draws. Sequences that need
        prompt logits have their prompt logprobs extended by what their spans predict, once that is collected.
        """
        computed = self._steps.run(spans)
        sampled = [span.sequence for span in spans if span.samples]
        draw = self._sampler.launch(computed.logits, sampled, self._score_prompts(spans, computed.hidden))
        self._last_draw.keep(sampled, draw.token_ids)
        return draw

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
