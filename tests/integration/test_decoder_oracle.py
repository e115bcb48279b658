"""Our decoder, KV cache, scheduler and sampler against transformers' Llama."""

from __future__ import annotations

import dataclasses
import json
import logging

import pytest
import torch

from app.engine.graphs import DecodeGraphs
from app.engine.scheduler import Span
from app.engine.sequence import new_sequence
from app.engine.skeleton import bind, build_skeleton
from app.messages import SamplingParams, Submit
from streaming.errors import CheckpointError
from streaming.messages import Extent
from tests.decoding import CPU, PROMPTS, Engine, reference_logits, reference_tokens
from tests.integration.packed_llama import VARIANTS, packed_llama


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


def test_a_graph_takes_only_rows_that_draw_a_token():
    """The last token of a prompt's piece is one token, too, but not a decode step."""
    engine = Engine(packed_llama())
    graphs = DecodeGraphs(engine.runner._model, engine.runner._cache)
    sequence = new_sequence(Submit("x", (3, 1, 4), SamplingParams(max_tokens=1)))
    assert graphs.takes([Span(sequence, 2, 3)])
    assert not graphs.takes([Span(sequence, 1, 2)])
    assert not graphs.takes([Span(sequence, 2, 3), Span(sequence, 0, 2)])
