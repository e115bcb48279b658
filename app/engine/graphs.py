"""Decode steps as CUDA graphs: one launch instead of hundreds of kernels' launches.

Takes spans of one token each, gives logits. A graph serves a bucket: so many sequences, contexts up to so many
tokens; smaller steps are padded. Graphs hold addresses, not values, so they may be captured before the weights
have landed. Knows no scheduling and no sampling.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from app.engine.attention import DecodeAttention
from app.engine.kv_cache import KVCache
from app.engine.models.language_model import LanguageModel
from app.engine.scheduler import Span

_MIN_CONTEXT_TOKENS = 512
# The gathered keys and values of a step are copies: beyond this they cost more than the launches do.
_MAX_GATHERED_TOKENS = 1 << 16


@dataclass(frozen=True)
class _Graph:
    """A captured step: the tensors that it reads, the one that it writes."""

    graph: torch.cuda.CUDAGraph
    token_ids: torch.Tensor  # (rows,)
    positions: torch.Tensor  # (rows,)
    slots: torch.Tensor  # (rows,)
    block_tables: torch.Tensor  # (rows, blocks)
    logits: torch.Tensor  # (rows, vocabulary)


class DecodeGraphs:
    """Graphs by bucket, captured when a step first needs one.

    Args:
        model: Every parameter bound; values may still arrive.
        cache: On the same GPU.
    """

    def __init__(self, model: LanguageModel, cache: KVCache):
        self._model = model
        self._cache = cache
        self._graphs: dict[tuple[int, int], _Graph] = {}

    def capture_first(self) -> None:
        """Capture what the first request will need."""
        self._graph(1, _MIN_CONTEXT_TOKENS)

    def takes(self, spans: list[Span]) -> bool:
        """Whether this step is decoding alone, and small enough.

        A piece of a prompt may be one token, too, but draws none: its row would be taken for another's.
        """
        if any(span.end - span.start > 1 or not span.samples for span in spans):
            return False
        rows, context_tokens = _bucket(spans)
        return rows * context_tokens <= _MAX_GATHERED_TOKENS

    def logits(self, spans: list[Span]) -> torch.Tensor:
        """(spans, vocabulary); overwritten by the next step of the same bucket."""
        graph = self._graph(*_bucket(spans))
        rows, blocks = graph.block_tables.shape
        padding = rows - len(spans)
        cache = self._cache
        tables = [_padded(span.sequence.block_ids[:blocks], blocks) for span in spans]
        slots = [cache.slot(span.sequence.block_ids, span.start) for span in spans]
        _write(graph.token_ids, [span.sequence.token_ids[span.start] for span in spans] + [0] * padding)
        _write(graph.positions, [span.start for span in spans] + [0] * padding)
        _write(graph.slots, slots + [cache.scratch_slot] * padding)
        _write(graph.block_tables, tables + [[0] * blocks] * padding)
        graph.graph.replay()
        return graph.logits[: len(spans)]

    def _graph(self, rows: int, context_tokens: int) -> _Graph:
        key = rows, context_tokens
        if key not in self._graphs:
            self._graphs[key] = self._capture(rows, context_tokens)
        return self._graphs[key]

    def _capture(self, rows: int, context_tokens: int) -> _Graph:
        blocks = -(-context_tokens // self._cache.block_size_tokens)
        zeros = torch.zeros(rows, dtype=torch.long, device=self._cache.device)
        token_ids, positions = zeros, zeros.clone()
        slots = torch.full_like(zeros, self._cache.scratch_slot)
        tables = zeros.new_zeros(rows, blocks)

        def step() -> torch.Tensor:
            attention = DecodeAttention.of(self._cache, slots, tables, positions)
            return self._model.logits(self._model(token_ids, positions, attention))

        step()  # whatever allocates or loads on its first call must not do so inside a capture
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            logits = step()
        return _Graph(graph, token_ids, positions, slots, tables, logits)


def _bucket(spans: list[Span]) -> tuple[int, int]:
    """Powers of two: sequences, and tokens of the longest context."""
    longest_tokens = max(span.end for span in spans)
    return _power_of_two(len(spans)), max(_MIN_CONTEXT_TOKENS, _power_of_two(longest_tokens))


def _power_of_two(value: int) -> int:
    return 1 << (value - 1).bit_length()


def _padded(block_ids: list[int], blocks: int) -> list[int]:
    return block_ids + [0] * (blocks - len(block_ids))


def _write(tensor: torch.Tensor, values: list[int] | list[list[int]]) -> None:
    tensor.copy_(torch.tensor(values), non_blocking=True)
