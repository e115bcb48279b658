"""The passes before the first request: one on whatever bytes are there, one on the real weights.

Takes a runner and the cache's blocks; leaves no block taken and no value kept.
"""

from __future__ import annotations

import itertools
import threading

import torch

from app.engine.blocks import BlockAllocator
from app.engine.model_runner import ModelRunner
from app.engine.models.language_model import LanguageModel
from app.engine.sampling.sampler import Sampler
from app.engine.scheduler import Span
from app.engine.sequence import Sequence
from app.messages import SamplingParams
from streaming.errors import CheckpointError

_WARMUP_TOKENS = 16


def warm_up(runner: ModelRunner, blocks: BlockAllocator, block_size_tokens: int) -> None:
    """One prefill, so that the first request pays for no first call.

    The weights may be anything (zeros, half a checkpoint, NaN): what comes out is dropped.
    """
    _pass(runner, blocks, block_size_tokens, (0,))


def warm_up_sampler(model: LanguageModel) -> threading.Thread:
    """Draw tokens in every way, in a thread: a GPU loads each kernel on first use, a tenth of a second in all."""

    def run() -> None:
        logits = torch.zeros(2, model.config.vocab_size, dtype=model.dtype, device=model.device)
        # One row that keeps the whole vocabulary, beside a few best tokens or beside a nucleus.
        for truncated in (SamplingParams(max_tokens=1, top_k=2), SamplingParams(max_tokens=1, top_p=0.9)):
            with torch.inference_mode():
                Sampler().sample(logits, [_scratch_sequence([0]), _scratch_sequence([0], truncated)])

    thread = threading.Thread(target=run, name="warm-up-sampler", daemon=True)
    thread.start()
    return thread


def check_weights(
    runner: ModelRunner, blocks: BlockAllocator, block_size_tokens: int, token_ids: tuple[int, ...]
) -> int:
    """One pass of `token_ids` (or a few tokens, if there are none) over the landed weights; its likeliest next token.

    Raises:
        CheckpointError: The logits are not finite.
    """
    logits = _pass(runner, blocks, block_size_tokens, token_ids or (0,))
    if not torch.isfinite(logits).all():
        raise CheckpointError("the model's logits are not finite: the checkpoint's weights are damaged")
    return int(logits[-1].argmax())


def _pass(
    runner: ModelRunner, blocks: BlockAllocator, block_size_tokens: int, token_ids: tuple[int, ...]
) -> torch.Tensor:
    """Logits (rows, vocab) of one prefill of 16 tokens: with another number of rows it might need other kernels."""
    tokens = min(_WARMUP_TOKENS, blocks.num_blocks * block_size_tokens)
    sequence = _scratch_sequence(list(itertools.islice(itertools.cycle(token_ids), tokens)))
    sequence.block_ids = blocks.allocate(-(-tokens // block_size_tokens), after=None)
    logits = runner.logits([Span(sequence, 0, tokens)])
    blocks.free(sequence.block_ids)
    return logits


def _scratch_sequence(token_ids: list[int], sampling: SamplingParams | None = None) -> Sequence:
    return Sequence("warm-up", sampling or SamplingParams(max_tokens=1), 0, len(token_ids), token_ids)
