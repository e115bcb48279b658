"""The passes before the first request: one on whatever bytes are there, one on the real weights.

Takes a runner and a scheduler of its own making; leaves no block taken and no value kept.
"""

from __future__ import annotations

import torch

from app.engine.blocks import BlockAllocator
from app.engine.model_runner import ModelRunner
from app.engine.scheduler import Span
from app.engine.sequence import Sequence
from app.messages import SamplingParams
from streaming.errors import CheckpointError

_WARMUP_TOKENS = 16


def warm_up(runner: ModelRunner, blocks: BlockAllocator, block_size_tokens: int) -> None:
    """One prefill and one decode step, so that the first request pays for no first call.

    The weights may be anything (zeros, half a checkpoint, NaN): what comes out is dropped.
    """
    tokens = min(_WARMUP_TOKENS, blocks.num_blocks * block_size_tokens - 1)
    sequence = _scratch_sequence([0] * tokens)
    sequence.block_ids = blocks.allocate(-(-(tokens + 1) // block_size_tokens), after=None)
    runner.run([Span(sequence, 0, tokens)])
    sequence.append(0)
    runner.run([Span(sequence, tokens, tokens + 1)])
    blocks.free(sequence.block_ids)


def check_weights(
    runner: ModelRunner, blocks: BlockAllocator, block_size_tokens: int, token_ids: tuple[int, ...]
) -> None:
    """One pass of `token_ids` (or a few tokens, if there are none) over the landed weights.

    Raises:
        CheckpointError: The logits are not finite.
    """
    capacity_tokens = min(_WARMUP_TOKENS, blocks.num_blocks * block_size_tokens)
    prompt = list(token_ids[:capacity_tokens]) or [0]
    sequence = _scratch_sequence(prompt)
    sequence.block_ids = blocks.allocate(-(-len(prompt) // block_size_tokens), after=None)
    logits = runner.logits([Span(sequence, 0, len(prompt))])
    blocks.free(sequence.block_ids)
    if not torch.isfinite(logits).all():
        raise CheckpointError("the model's logits are not finite: the checkpoint's weights are damaged")


def _scratch_sequence(token_ids: list[int]) -> Sequence:
    return Sequence("warm-up", SamplingParams(max_tokens=1, temperature=1.0), 0, len(token_ids), token_ids)
