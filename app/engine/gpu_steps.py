"""A GPU's steps with our kernels, most of them as CUDA graphs: one launch instead of hundreds.

Takes spans, gives logits. A step is padded to a shape: so many sequences that decode, or so many tokens of any
sequences. Graphs are captured in idle time; where there is none, a shape's first step runs as it is and the second
captures. They hold addresses, not values, so the weights need not have landed. Knows no scheduling and no sampling.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence as Seq

import torch

from app.engine.kernels.attention import best_queries_per_tile
from app.engine.kv_cache import KVCache
from app.engine.last_draw import LastDraw
from app.engine.models.language_model import LanguageModel
from app.engine.paged_attention import DecodeBatch, MixedBatch
from app.engine.scheduler import Span
from app.engine.step_inputs import StepInputs
from app.engine.step_shapes import Limits, Shape, all_shapes, shape_of
from app.engine.steps import Computed

logger = logging.getLogger(__name__)


class GPUSteps:
    """One model's steps.

    Args:
        model: Every parameter bound; values may still arrive.
        cache: On the same GPU.
        last_draw: Where tokens are that the host does not know yet.
        limits: Of what `run` will be given.
    """

    def __init__(self, model: LanguageModel, cache: KVCache, last_draw: LastDraw, limits: Limits):
        self._model = model
        self._cache = cache
        self._limits = limits
        config = model.config
        self._inputs = StepInputs(
            cache,
            last_draw,
            max_tokens=limits.padded_tokens,
            max_sequences=limits.padded_sequences,
            max_blocks=-(-limits.max_model_len_tokens // cache.block_size_tokens),
            queries_per_tile=best_queries_per_tile(config.num_heads, config.num_kv_heads, config.head_dim, model.dtype),
        )
        self._logits = self._empty(limits.padded_sequences, config.vocab_size)
        self._hidden = self._empty(limits.padded_tokens, config.hidden_size)
        self._graphs: dict[Shape, torch.cuda.CUDAGraph] = {}
        self._seen: set[Shape] = set()  # shapes that have run
        self._never: set[Shape] = set()  # shapes that could not be captured
        self._pool = torch.cuda.graph_pool_handle() if cache.device.type == "cuda" else None

    def _empty(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=self._model.dtype, device=self._cache.device)

    def run(self, spans: Seq[Span]) -> Computed:
        """See `app.engine.steps.Steps.run`."""
        shape = shape_of([span.end - span.start for span in spans], decodes=all(span.samples for span in spans))
        self._write(spans, shape)
        if shape in self._graphs or (shape in self._seen and self._capture(shape)):
            self._graphs[shape].replay()
        else:
            self._compute(shape)
            self._seen.add(shape)
        samples = sum(span.samples for span in spans)
        tokens = sum(span.end - span.start for span in spans)
        return Computed(self._logits[:samples], self._hidden[:tokens])

    def compile(self) -> None:
        """Run one step of either kind on padding alone, so that every kernel is compiled. In any thread."""
        for shape in (Shape(1, decodes=True), shape_of([2], decodes=True)):
            self._write((), shape)
            self._compute(shape)

    def capture_next(self) -> bool:
        """Capture one graph that is missing, in the order of their need; whether there was one."""
        shape = next((shape for shape in all_shapes(self._limits) if self._is_missing(shape)), None)
        if shape is None:
            return False
        try:
            self._write((), shape)
            if shape not in self._seen:
                self._compute(shape)  # what allocates or loads on its first call must not do so inside a capture
                self._seen.add(shape)
        except RuntimeError as error:
            self._give_up(shape, error)
        else:
            self._capture(shape)
        return True

    def _is_missing(self, shape: Shape) -> bool:
        return shape not in self._graphs and shape not in self._never and self._may_be_captured(shape)

    def _may_be_captured(self, shape: Shape) -> bool:
        most = self._model.max_captured_tokens
        return self._pool is not None and (most is None or shape.tokens <= most)

    def _write(self, spans: Seq[Span], shape: Shape) -> None:
        if shape.decodes:
            self._inputs.write_decode(spans, shape.tokens)
        else:
            self._inputs.write_mixed(spans, shape.tokens)

    def _compute(self, shape: Shape) -> None:
        """The step that the inputs say; nothing here may depend on their values."""
        token_ids, positions, slots = self._inputs.tokens(shape.tokens)
        if shape.decodes:
            hidden = self._model(token_ids, positions, self._decode_batch(shape, positions, slots))
            self._logits[: shape.tokens].copy_(self._model.logits(hidden))
            return
        hidden = self._model(token_ids, positions, self._mixed_batch(shape, slots))
        self._hidden[: shape.tokens].copy_(hidden)
        last_rows = self._inputs.last_rows[: min(shape.tokens, self._limits.padded_sequences)]
        self._logits[: len(last_rows)].copy_(self._model.logits(hidden.index_select(0, last_rows)))

    def _decode_batch(self, shape: Shape, positions: torch.Tensor, slots: torch.Tensor) -> DecodeBatch:
        return DecodeBatch(self._cache, slots, self._inputs.block_tables[: shape.tokens], (positions + 1).int())

    def _mixed_batch(self, shape: Shape, slots: torch.Tensor) -> MixedBatch:
        inputs = self._inputs
        return MixedBatch(
            self._cache,
            slots,
            inputs.block_tables,
            inputs.lengths,
            inputs.query_starts,
            inputs.tiles[: inputs.tiles_of(shape.tokens)],
            inputs.queries_per_tile,
        )

    def _capture(self, shape: Shape) -> bool:
        """Make the shape's graph; whether that went well. A shape that fails is computed without one from then on."""
        if not self._is_missing(shape):
            return False
        graph = torch.cuda.CUDAGraph()
        try:
            # A capture that fails may stay on its own stream; the outer context comes back from it.
            with (
                torch.cuda.stream(torch.cuda.current_stream()),
                torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
            ):
                self._compute(shape)
        except RuntimeError as error:  # no memory left, or an operation that no graph can hold
            self._give_up(shape, error)
            self._pool = torch.cuda.graph_pool_handle()  # the old one may be in use for ever
            return False
        self._graphs[shape] = graph
        return True

    def _give_up(self, shape: Shape, error: RuntimeError) -> None:
        logger.warning("steps of %d tokens stay without a CUDA graph: %s", shape.tokens, error)
        self._never.add(shape)
