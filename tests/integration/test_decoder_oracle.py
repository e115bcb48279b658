"""Our decoder, KV cache, scheduler and sampler against transformers' Llama."""

from __future__ import annotations

import dataclasses
import json
import logging

import pytest
import torch

from app.engine.blocks import BlockAllocator
from app.engine.kv_cache import KVCache
from app.engine.model_runner import ModelRunner
from app.engine.scheduler import Scheduler, Span
from app.engine.sequence import Sequence, new_sequence
from app.engine.skeleton import bind, build_skeleton
from app.messages import SamplingParams, Submit
from streaming.errors import CheckpointError
from streaming.messages import Extent
from tests.integration.packed_llama import VARIANTS, PackedLlama, packed_llama

BLOCK_SIZE = 4
CPU = torch.device("cpu")
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [8, 9, 7], [9, 3, 2, 3, 8, 4, 6, 2, 6, 4, 3, 3, 8, 3, 2, 7, 9, 5, 0]]


class Engine:
    """A bound model with a cache of its own, run to the end."""

    def __init__(self, packed: PackedLlama, *, num_blocks: int = 64, max_num_batched_tokens: int = 512):
        arena = torch.frombuffer(bytearray(packed.arena), dtype=torch.uint8)
        model = build_skeleton(packed.config_json, packed.extents, CPU)
        bind(model, arena, packed.extents)
        self.blocks = BlockAllocator(num_blocks)
        self.runner = ModelRunner(model, KVCache(model.config, model.dtype, CPU, num_blocks, BLOCK_SIZE))
        self.scheduler = Scheduler(
            self.blocks,
            block_size_tokens=BLOCK_SIZE,
            max_num_seqs=8,
            max_num_batched_tokens=max_num_batched_tokens,
        )
        self.preemptions = 0

    def generate(self, prompts: list[list[int]], **sampling) -> list[list[int]]:
        """What is generated after each prompt, all of them at once."""
        params = SamplingParams(**{"max_tokens": 12, "temperature": 0.0} | sampling)
        sequences = [new_sequence(Submit(str(i), tuple(prompt), params)) for i, prompt in enumerate(prompts)]
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
        drawn = self.runner.run(spans)
        self.scheduler.advance(spans)
        for span, token_id in zip([span for span in spans if span.samples], drawn, strict=True):
            if span.sequence.append(token_id) is not None:
                self.scheduler.finish(span.sequence)

    def logits(self, prompt: list[int], *, chunk_tokens: int | None = None) -> torch.Tensor:
        """Logits after `prompt`, prefilled in pieces of `chunk_tokens`."""
        sequence = new_sequence(Submit("x", tuple(prompt), SamplingParams(max_tokens=1)))
        sequence.block_ids = self.blocks.allocate(-(-len(prompt) // BLOCK_SIZE), after=None)
        step = chunk_tokens or len(prompt)
        spans = [Span(sequence, at, min(at + step, len(prompt))) for at in range(0, len(prompt), step)]
        logits = [self.runner.logits([span]) for span in spans][-1]
        self.blocks.free(sequence.block_ids)
        return logits[0]


def reference_logits(packed: PackedLlama, prompt: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return packed.reference(torch.tensor([prompt])).logits[0, -1]


def reference_tokens(packed: PackedLlama, prompt: list[int], max_tokens: int = 12) -> list[int]:
    ids = torch.tensor([prompt])
    output = packed.reference.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False
    )
    return output[0, len(prompt) :].tolist()


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers_in_float32(variant):
    """Every supported shape of the family gives transformers' logits within 1e-4 of their scale."""
    packed = packed_llama(**VARIANTS[variant])
    for prompt in PROMPTS:
        expected = reference_logits(packed, prompt)
        error = (Engine(packed).logits(prompt) - expected).abs().max() / expected.abs().max()
        assert error < 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_tokens_equal_generate(variant):
    """Greedy decoding gives exactly the tokens of `generate`, alone and in a batch."""
    packed = packed_llama(**VARIANTS[variant])
    expected = [reference_tokens(packed, prompt) for prompt in PROMPTS]
    assert [Engine(packed).generate([prompt])[0] for prompt in PROMPTS] == expected
    assert Engine(packed).generate(PROMPTS) == expected


def test_logits_follow_transformers_in_bfloat16():
    """In bfloat16 the logits differ from transformers' by no more than bfloat16's own rounding."""
    packed = packed_llama(torch.bfloat16)
    for prompt in PROMPTS:
        expected = reference_logits(packed, prompt).float()
        error = (Engine(packed).logits(prompt).float() - expected).abs().max() / expected.abs().max()
        assert error < 2e-2


def test_old_rope_spelling_means_the_same():
    """`rope_theta` with `rope_scaling` computes what `rope_parameters` computes."""
    packed = packed_llama(**VARIANTS["llama3 rope"])
    config = json.loads(packed.config_json)
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope
    old = dataclasses.replace(packed, config_json=json.dumps(config).encode())
    torch.testing.assert_close(Engine(old).logits(PROMPTS[2]), Engine(packed).logits(PROMPTS[2]), rtol=0, atol=0)


@pytest.mark.parametrize("chunk_tokens", [1, 3, 4, 7])
def test_chunked_prefill_equals_whole_prefill(chunk_tokens):
    """A prompt computed in pieces gives the logits of the prompt computed at once."""
    engine = Engine(packed_llama())
    whole = engine.logits(PROMPTS[2])
    torch.testing.assert_close(engine.logits(PROMPTS[2], chunk_tokens=chunk_tokens), whole, rtol=1e-4, atol=1e-5)


def test_a_small_token_budget_changes_no_token():
    """Prompts that are scheduled in pieces beside decoding sequences generate the same tokens."""
    packed = packed_llama()
    expected = Engine(packed).generate(PROMPTS)
    assert Engine(packed, max_num_batched_tokens=5).generate(PROMPTS) == expected


def test_preemption_changes_no_token():
    """Sequences that lose their blocks and are recomputed generate the same tokens."""
    packed = packed_llama()
    expected = Engine(packed).generate(PROMPTS)
    tight = Engine(packed, num_blocks=13)
    assert tight.generate(PROMPTS) == expected
    assert tight.preemptions > 0


def test_scattered_blocks_change_no_token():
    """A sequence whose blocks are not in a row reads the same keys and values."""
    packed = packed_llama()
    engine = Engine(packed, num_blocks=32)
    taken = engine.blocks.allocate(32, after=None)
    engine.blocks.free(sorted(taken)[::2])
    engine.blocks.num_blocks = 16  # what is left of it, for the check that all come back
    assert engine.generate(PROMPTS[:1]) == Engine(packed).generate(PROMPTS[:1])


def test_seeded_draws_do_not_depend_on_the_batch():
    """A seeded sequence draws the same tokens alone, in a batch and through preemptions."""
    packed = packed_llama()
    sampling = {"temperature": 1.0, "top_p": 0.9, "seed": 7}
    alone = [Engine(packed).generate([prompt], **sampling)[0] for prompt in PROMPTS]
    assert Engine(packed).generate(PROMPTS, **sampling) == alone
    assert Engine(packed, num_blocks=13).generate(PROMPTS, **sampling) == alone
    assert Engine(packed).generate(PROMPTS, temperature=1.0, seed=8) != alone


def test_the_skeleton_is_on_meta_and_says_so(caplog):
    """Building the skeleton allocates no parameter and logs how many there are."""
    packed = packed_llama()
    with caplog.at_level(logging.INFO, logger="app.engine.skeleton"):
        model = build_skeleton(packed.config_json, packed.extents, CPU)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert f"{packed.reference.num_parameters()} parameters on meta" in caplog.messages


def test_every_parameter_is_a_view_of_the_arena():
    """Bytes that land after the binding are what the model computes with."""
    packed = packed_llama()
    arena = torch.zeros(len(packed.arena), dtype=torch.uint8)
    model = build_skeleton(packed.config_json, packed.extents, CPU)
    bind(model, arena, packed.extents)
    assert not any(parameter.any() for parameter in model.parameters())
    arena.copy_(torch.frombuffer(bytearray(packed.arena), dtype=torch.uint8))
    torch.testing.assert_close(model.lm_head.weight, packed.reference.lm_head.weight, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (None, "has no model.norm.weight"),
        (Extent("F32", (63,), 0, 252), "but the config needs"),
        (Extent("BF16", (64,), 0, 128), "but the config needs"),
        (Extent("I64", (64,), 0, 512), "does not compute with"),
        (Extent("F32", (64,), 1 << 40, 256), "of an arena of"),
    ],
)
def test_an_extent_that_does_not_fit_is_named(change, complaint):
    """A missing, misshapen, mistyped or misplaced tensor is an error that names it."""
    packed = packed_llama()
    extents = dict(packed.extents)
    del extents["model.norm.weight"]
    if change is not None:
        extents["model.norm.weight"] = change
    model = build_skeleton(packed.config_json, packed.extents, CPU)
    with pytest.raises(CheckpointError, match=complaint) as caught:
        bind(model, torch.zeros(len(packed.arena), dtype=torch.uint8), extents)
    assert "model.norm.weight" in str(caught.value)
