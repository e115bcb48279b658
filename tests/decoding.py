"""The engine's loop, model, cache, scheduler and sampler in one process, and transformers' answers to compare with."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import msgspec
import pytest
import torch

from app.engine.blocks import BlockAllocator
from app.engine.kv_cache import KVCache
from app.engine.loop import Loop
from app.engine.model_runner import ModelRunner
from app.engine.models.language_model import LanguageModel
from app.engine.scheduler import Scheduler, Span
from app.engine.sequence import Sequence, new_sequence
from app.engine.skeleton import bind, build_skeleton
from app.engine.step_shapes import Limits
from app.messages import FromEngine, SamplingParams, StepOutput, Submit, ToEngine, TokenOutput
from tests.integration.packed_model import PackedModel

BLOCK_SIZE = 4
CPU = torch.device("cpu")
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [8, 9, 7], [9, 3, 2, 3, 8, 4, 6, 2, 6, 4, 3, 3, 8, 3, 2, 7, 9, 5, 0]]


class _CountingScheduler(Scheduler):
    """Counts what tests want to know has happened."""

    preemptions = 0
    reused_tokens = 0

    def _preempt_youngest(self) -> None:
        super()._preempt_youngest()
        self.preemptions += 1

    def _admit(self) -> Sequence | None:
        sequence = super()._admit()
        if sequence is not None:
            self.reused_tokens += sequence.computed_tokens
        return sequence


class _Idle(Exception):
    """Every message was said and every sequence has ended."""


class Engine:
    """A bound model with a cache of its own, and the engine's loop around it."""

    def __init__(
        self,
        packed: PackedModel,
        *,
        num_blocks: int = 64,
        max_num_seqs: int = 16,
        max_num_batched_tokens: int = 512,
        device: torch.device = CPU,
        max_model_len_tokens: int | None = None,
        prefix_caching: bool = False,
        kernels: bool = False,
        lookahead: bool = False,
    ):
        arena = torch.frombuffer(bytearray(packed.arena), dtype=torch.uint8).to(device)
        model = _bound(packed, arena, max_model_len_tokens)
        self.blocks = BlockAllocator(num_blocks)
        self.runner = ModelRunner(model, KVCache(model.config, model.dtype, device, num_blocks, BLOCK_SIZE))
        if kernels:
            self.runner.use_kernels(Limits(max_num_batched_tokens, max_num_seqs, num_blocks * BLOCK_SIZE))
        self.scheduler = _CountingScheduler(
            self.blocks,
            block_size_tokens=BLOCK_SIZE,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            prefix_caching=prefix_caching,
        )
        self._lookahead = lookahead

    def generate(self, prompts: list[list[int]], **sampling) -> list[list[int]]:
        """What is generated after each prompt, all of them at once."""
        params = SamplingParams(**{"max_tokens": 12, "temperature": 0.0} | sampling)
        return self.answers([(prompt, params) for prompt in prompts])

    def answers(self, requests: list[tuple[list[int], SamplingParams]]) -> list[list[int]]:
        """What each request gets, all of them at once."""
        submits = [Submit(str(i), tuple(prompt), params) for i, (prompt, params) in enumerate(requests)]
        return [[token.token_id for token in tokens] for tokens in self.serve(submits).values()]

    def serve(self, *arrivals: Seq[ToEngine]) -> dict[str, list[TokenOutput]]:
        """What the server reads of each request; each of the arrivals comes between two steps, or when all is done."""
        says = list(arrivals)
        submits = [message for messages in arrivals for message in messages if isinstance(message, Submit)]
        told: dict[str, list[TokenOutput]] = {submit.request_id: [] for submit in submits}

        def receive(block: bool) -> Seq[ToEngine]:
            if says:
                return says.pop(0)
            if block:
                raise _Idle
            return []

        def send(message: FromEngine) -> None:
            decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=FromEngine)
            assert isinstance(decoded, StepOutput), message
            for token in decoded.tokens:
                told[token.request_id].append(token)

        loop = Loop(
            receive=receive,
            send=send,
            scheduler=self.scheduler,
            runner=self.runner,
            max_model_len_tokens=1 << 20,
            vocab_size=self.runner._model.config.vocab_size,
            lookahead=lambda: self._lookahead,
        )
        with pytest.raises(_Idle):
            loop.run()
        assert self.blocks.num_free == self.blocks.num_blocks
        return told

    def logits(self, prompt: list[int], *, chunk_tokens: int | None = None) -> torch.Tensor:
        """Logits after `prompt`, prefilled in pieces of `chunk_tokens`."""
        sequence = new_sequence(Submit("x", tuple(prompt), SamplingParams(max_tokens=1)))
        sequence.block_ids = self.blocks.allocate(-(-len(prompt) // BLOCK_SIZE), after=None)
        step = chunk_tokens or len(prompt)
        spans = [Span(sequence, at, min(at + step, len(prompt))) for at in range(0, len(prompt), step)]
        logits = [self.runner.logits([span]) for span in spans][-1]
        self.blocks.free(sequence.block_ids)
        return logits[0].cpu()


def _bound(packed: PackedModel, arena: torch.Tensor, max_model_len_tokens: int | None) -> LanguageModel:
    if packed.transformers_dtype is not None:
        from app.engine.transformers_skeleton import bound_transformers_model

        return bound_transformers_model(packed.config_json, packed.transformers_dtype, arena, packed.extents)
    model = build_skeleton(packed.config_json, packed.extents, arena.device, max_model_len_tokens)
    bind(model, arena, packed.extents)
    return model


def logits_error(engine: Engine, packed: PackedModel, prompt: list[int]) -> float:
    """The largest difference of the engine's logits to the reference's, over the largest of those."""
    expected = reference_logits(packed, prompt).float()
    return float((engine.logits(prompt).float() - expected).abs().max() / expected.abs().max())


def reference_logits(packed: PackedModel, prompt: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return packed.reference(torch.tensor([prompt])).logits[0, -1]


def reference_tokens(packed: PackedModel, prompt: list[int], max_tokens: int = 12) -> list[int]:
    ids = torch.tensor([prompt])
    output = packed.reference.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False
    )
    return output[0, len(prompt) :].tolist()
