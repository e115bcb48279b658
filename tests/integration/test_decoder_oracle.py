"""Our decoder, KV cache, scheduler and sampler against transformers' models of every family."""

from __future__ import annotations

import dataclasses
import json
import logging

import pytest
import torch

from app.engine.skeleton import bind, build_skeleton
from app.messages import SamplingParams
from streaming.errors import CheckpointError
from streaming.messages import Extent
from tests.decoding import CPU, PROMPTS, Engine, logits_error, reference_tokens
from tests.integration.packed_model import VARIANTS, longrope, packed_model, packed_variant


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers_in_float32(variant):
    """Every family and every shape of it gives transformers' logits within 1e-4 of their scale."""
    packed = packed_variant(variant)
    for prompt in PROMPTS:
        assert logits_error(Engine(packed), packed, prompt) < 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_tokens_equal_generate(variant):
    """Greedy decoding gives exactly the tokens of `generate`, alone and in a batch."""
    packed = packed_variant(variant)
    expected = [reference_tokens(packed, prompt) for prompt in PROMPTS]
    assert [Engine(packed).generate([prompt])[0] for prompt in PROMPTS] == expected
    assert Engine(packed).generate(PROMPTS) == expected


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "phi3", "mixtral", "qwen3_moe"])
def test_logits_follow_transformers_in_bfloat16(model_type):
    """In bfloat16 the logits differ from transformers' by no more than bfloat16's own rounding."""
    packed = packed_model(model_type, torch.bfloat16)
    for prompt in PROMPTS:
        error = logits_error(Engine(packed), packed, prompt)
        # transformers itself is up to 3.5e-2 from float32 for phi3, whose residuals are the largest.
        assert error < (3e-2 if model_type == "phi3" else 2e-2)


def test_old_rope_spelling_means_the_same():
    """`rope_theta` with `rope_scaling` computes what `rope_parameters` computes."""
    packed = packed_variant("llama3 rope")
    config = json.loads(packed.config_json)
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope
    old = dataclasses.replace(packed, config_json=json.dumps(config).encode())
    torch.testing.assert_close(Engine(old).logits(PROMPTS[2]), Engine(packed).logits(PROMPTS[2]), rtol=0, atol=0)


@pytest.mark.parametrize("prompt", [PROMPTS[0], PROMPTS[2]])
def test_longrope_beyond_the_original_context_is_transformers(prompt):
    """Prompts longer than the original context get the long factors, as transformers gives them."""
    packed = packed_model("phi3", **longrope(8))
    assert logits_error(Engine(packed), packed, prompt) < 1e-4
    assert Engine(packed).generate([prompt]) == [reference_tokens(packed, prompt)]


def test_longrope_has_one_set_of_factors_for_all_sequences():
    """The longest sequence decides, also for short ones: short factors up to the original context, else long ones."""
    packed = packed_model("phi3", **longrope(64))
    rope = json.loads(packed.config_json)["rope_parameters"]
    only_long = packed_model("phi3", **longrope(64, short_factor=rope["long_factor"]))
    for reference, max_model_len_tokens in ((packed, 64), (only_long, 65), (only_long, None)):
        engine = Engine(packed, max_model_len_tokens=max_model_len_tokens)
        assert engine.generate(PROMPTS) == [reference_tokens(reference, prompt) for prompt in PROMPTS]


WINDOWED = ["gqa, tied", "mistral, window", "mistral, wide heads", "qwen2, layer types"]


@pytest.mark.parametrize("variant", WINDOWED)
@pytest.mark.parametrize("chunk_tokens", [1, 3, 4, 7])
def test_chunked_prefill_equals_whole_prefill(variant, chunk_tokens):
    """A prompt computed in pieces gives the logits of the prompt computed at once, with windows and without."""
    engine = Engine(packed_variant(variant))
    whole = engine.logits(PROMPTS[2])
    torch.testing.assert_close(engine.logits(PROMPTS[2], chunk_tokens=chunk_tokens), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", ["gqa, tied", "mistral, window", "qwen3 moe, normalised"])
def test_a_small_token_budget_changes_no_token(variant):
    """Prompts that are scheduled in pieces beside decoding sequences generate the same tokens."""
    packed = packed_variant(variant)
    expected = Engine(packed).generate(PROMPTS)
    assert Engine(packed, max_num_batched_tokens=5).generate(PROMPTS) == expected


def test_preemption_changes_no_token():
    """Sequences that lose their blocks and are recomputed generate the same tokens."""
    packed = packed_model()
    expected = Engine(packed).generate(PROMPTS)
    tight = Engine(packed, num_blocks=13)
    assert tight.generate(PROMPTS) == expected
    assert tight.scheduler.preemptions > 0


def mixed_requests() -> list[tuple[list[int], SamplingParams]]:
    """Sixteen different wishes."""
    wishes = [
        {},
        {"repetition_penalty": 1.5},
        {"presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"logit_bias": ((5, 4.0), (9, -50.0))},
        {"allowed_token_ids": (3, 4, 5, 6, 7)},
        {"temperature": 1.0, "seed": 1},
        {"temperature": 0.7, "top_p": 0.8, "seed": 2},
        {"temperature": 1.3, "top_k": 5, "min_p": 0.05, "seed": 3},
    ]
    return [
        (
            [(7 * number + 3 * place) % 31 for place in range(2 + 3 * number)],
            SamplingParams(**({"max_tokens": 9, "temperature": 0.0} | wish)),
        )
        for number, wish in enumerate(wishes * 2)
    ]


@pytest.mark.parametrize("variant", ["gqa, tied", "mistral, window"])
def test_a_cached_prefix_changes_no_token(variant):
    """What another sequence has computed is as good as one's own, by itself and in a batch."""
    packed = packed_variant(variant)
    prompts = [[*PROMPTS[2], *ending] for ending in ([1], [2, 3], [], [1])]
    expected = [Engine(packed).generate([prompt])[0] for prompt in prompts]
    engine = Engine(packed, prefix_caching=True)
    assert [engine.generate([prompt])[0] for prompt in prompts] == expected
    assert engine.generate(prompts) == expected
    assert engine.scheduler.reused_tokens >= 16 * (2 * len(prompts) - 1)
    tight = Engine(packed, num_blocks=17, prefix_caching=True)
    assert tight.generate(prompts) == expected
    assert tight.scheduler.preemptions > 0


def test_sixteen_mixed_requests_get_what_each_gets_alone():
    """Greedy, seeded, truncated, penalised, biased and banned, of many lengths, in one batch."""
    packed = packed_model()
    engine = Engine(packed)
    requests = mixed_requests()
    alone = [Engine(packed).answers([request])[0] for request in requests]
    assert engine.answers(requests) == alone
    assert Engine(packed, num_blocks=40, prefix_caching=True).answers(requests) == alone


@pytest.mark.parametrize("variant", ["gqa, tied", "mistral, window"])
def test_scattered_blocks_change_no_token(variant):
    """A sequence whose blocks are not in a row reads the same keys and values."""
    packed = packed_variant(variant)
    engine = Engine(packed, num_blocks=32)
    taken = engine.blocks.allocate(32, after=None)
    engine.blocks.free(sorted(taken)[::2])
    engine.blocks.num_blocks = 16  # what is left of it, for the check that all come back
    assert engine.generate(PROMPTS[:1]) == Engine(packed).generate(PROMPTS[:1])


def test_seeded_draws_do_not_depend_on_the_batch():
    """A seeded sequence draws the same tokens alone, in a batch and through preemptions."""
    packed = packed_model()
    sampling = {"temperature": 1.0, "top_p": 0.9, "seed": 7}
    alone = [Engine(packed).generate([prompt], **sampling)[0] for prompt in PROMPTS]
    assert Engine(packed).generate(PROMPTS, **sampling) == alone
    assert Engine(packed, num_blocks=13).generate(PROMPTS, **sampling) == alone
    assert Engine(packed).generate(PROMPTS, temperature=1.0, seed=8) != alone


def test_the_skeleton_is_on_meta_and_says_so(caplog):
    """Building the skeleton allocates no parameter and logs how many there are."""
    packed = packed_model()
    with caplog.at_level(logging.INFO, logger="app.engine.skeleton"):
        model = build_skeleton(packed.config_json, packed.extents, CPU)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert f"{packed.reference.num_parameters()} parameters on meta" in caplog.messages


def test_every_parameter_is_a_view_of_the_arena():
    """Bytes that land after the binding are what the model computes with."""
    packed = packed_model()
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
    packed = packed_model()
    extents = dict(packed.extents)
    del extents["model.norm.weight"]
    if change is not None:
        extents["model.norm.weight"] = change
    model = build_skeleton(packed.config_json, packed.extents, CPU)
    with pytest.raises(CheckpointError, match=complaint) as caught:
        bind(model, torch.zeros(len(packed.arena), dtype=torch.uint8), extents)
    assert "model.norm.weight" in str(caught.value)
