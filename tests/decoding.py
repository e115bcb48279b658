"""The engine's model, cache, scheduler and sampler in one process, and transformers' answers to compare with."""

from __future__ import annotations

import torch

from app.engine.blocks import BlockAllocator
from app.engine.kv_cache import KVCache
from app.engine.model_runner import ModelRunner
from app.engine.models.language_model import LanguageModel
from app.engine.scheduler import Scheduler, Span
from app.engine.sequence import Sequence, new_sequence
from app.engine.skeleton import bind, build_skeleton
from app.engine.step_shapes import Limits
from app.messages import SamplingParams, Submit
from tests.integration.packed_model import PackedModel

BLOCK_SIZE = 4
MAX_NUM_SEQS = 16
CPU = torch.device("cpu")
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [8, 9, 7], [9, 3, 2, 3, 8, 4, 6, 2, 6, 4, 3, 3, 8, 3, 2, 7, 9, 5, 0]]


class Engine:
    """A bound model with a cache of its own, run to the end."""

    def __init__(
        self,
        packed: PackedModel,
        *,
        num_blocks: int = 64,
        max_num_batched_tokens: int = 512,
        device: torch.device = CPU,
        max_model_len_tokens: int | None = None,
        prefix_caching: bool = False,
        kernels: bool = False,
    ):
        arena = torch.frombuffer(bytearray(packed.arena), dtype=torch.uint8).to(device)
        model = _bound(packed, arena, max_model_len_tokens)
        self.blocks = BlockAllocator(num_blocks)
        self.runner = ModelRunner(model, KVCache(model.config, model.dtype, device, num_blocks, BLOCK_SIZE))
        if kernels:
            self.runner.use_kernels(Limits(max_num_batched_tokens, MAX_NUM_SEQS, num_blocks * BLOCK_SIZE))
        self.scheduler = Scheduler(
            self.blocks,
            block_size_tokens=BLOCK_SIZE,
            max_num_seqs=MAX_NUM_SEQS,
            max_num_batched_tokens=max_num_batched_tokens,
            prefix_caching=prefix_caching,
        )
        self.preemptions = 0
        self.reused_tokens = 0

    def generate(self, prompts: list[list[int]], **sampling) -> list[list[int]]:
        """What is generated after each prompt, all of them at once."""
        params = SamplingParams(**{"max_tokens": 12, "temperature": 0.0} | sampling)
        return self.answers([(prompt, params) for prompt in prompts])

    def answers(self, requests: list[tuple[list[int], SamplingParams]]) -> list[list[int]]:
        """What each request gets, all of them at once."""
        sequences = [new_sequence(Submit(str(i), tuple(prompt), params)) for i, (prompt, params) in enumerate(requests)]
        for sequence in sequences:
            self.scheduler.submit(sequence)
        while self.scheduler.has_work:
            self._step(sequences)
        assert self.blocks.num_free == self.blocks.num_blocks
        return [sequence.token_ids[sequence.prompt_tokens :] for sequence in sequences]

    def _step(self, sequences: list[Sequence]) -> None:
        before = [sequence.computed_tokens for sequence in sequences]
        spans = self.scheduler.schedule()
        after = [sequence.computed_tokens for sequence in sequences]
        self.preemptions += sum(new < old for new, old in zip(after, before, strict=True))
        self.reused_tokens += sum(max(0, new - old) for new, old in zip(after, before, strict=True))
        drawn = self.runner.run(spans)
        self.scheduler.advance(spans)
        for span, token in zip([span for span in spans if span.samples], drawn, strict=True):
            if span.sequence.append(token.token_id) is not None:
                self.scheduler.finish(span.sequence)

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
