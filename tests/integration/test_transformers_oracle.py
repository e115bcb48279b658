"""transformers' own classes on our arena, KV cache, scheduler and sampler, against themselves alone."""

from __future__ import annotations

import pytest
import torch

from app.engine.transformers_skeleton import bound_transformers_model
from streaming.errors import CheckpointError
from tests.decoding import PROMPTS, Engine, logits_error, reference_tokens
from tests.integration.packed_class import VARIANTS, packed_class


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_the_class_alone(variant):
    """Every class gives its own logits within 1e-4 of their scale."""
    packed = packed_class(variant)
    for prompt in PROMPTS:
        assert logits_error(Engine(packed), packed, prompt) < 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_tokens_equal_generate(variant):
    """Greedy decoding gives exactly the tokens of `generate`, alone, in a batch and with prompts in pieces."""
    packed = packed_class(variant)
    expected = [reference_tokens(packed, prompt) for prompt in PROMPTS]
    assert [Engine(packed).generate([prompt])[0] for prompt in PROMPTS] == expected
    assert Engine(packed).generate(PROMPTS) == expected
    assert Engine(packed, max_num_batched_tokens=5).generate(PROMPTS) == expected


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("chunk_tokens", [1, 4, 7])
def test_chunked_prefill_equals_whole_prefill(variant, chunk_tokens):
    """A prompt computed in pieces gives the logits of the prompt computed at once."""
    engine = Engine(packed_class(variant))
    whole = engine.logits(PROMPTS[2])
    torch.testing.assert_close(engine.logits(PROMPTS[2], chunk_tokens=chunk_tokens), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", ["gpt2", "gemma2"])
def test_preemption_changes_no_token(variant):
    """Sequences that lose their blocks and are recomputed generate the same tokens."""
    packed = packed_class(variant)
    tight = Engine(packed, num_blocks=13)
    assert tight.generate(PROMPTS) == [reference_tokens(packed, prompt) for prompt in PROMPTS]
    assert tight.scheduler.preemptions > 0


@pytest.mark.parametrize("variant", ["gpt2", "gemma2", "gemma3", "olmoe"])
def test_logits_follow_the_class_in_bfloat16(variant):
    """In bfloat16 the logits differ from the class' own by no more than bfloat16's rounding."""
    packed = packed_class(variant, torch.bfloat16)
    for prompt in PROMPTS:
        error = logits_error(Engine(packed), packed, prompt)
        assert error < 3e-2


@pytest.mark.parametrize("variant", ["gpt2", "gemma2", "olmoe"])
def test_every_parameter_is_a_view_of_the_arena(variant):
    """Bytes that land after the binding are what the class computes with; tied names share them."""
    packed = packed_class(variant)
    arena = torch.zeros(len(packed.arena), dtype=torch.uint8)
    model = bound_transformers_model(packed.config_json, "F32", arena, packed.extents)
    assert all(not parameter.any() for parameter in model.causal.parameters())
    arena.copy_(torch.frombuffer(bytearray(packed.arena), dtype=torch.uint8))
    expected = packed.reference.state_dict()
    for name, parameter in model.causal.state_dict().items():
        torch.testing.assert_close(parameter, expected[name], rtol=0, atol=0)


def test_a_parameter_without_an_extent_is_named():
    """What the arena has not is an error before anything is computed."""
    packed = packed_class("gpt2")
    extents = {name: extent for name, extent in packed.extents.items() if "h.1.ln_2.bias" not in name}
    arena = torch.zeros(len(packed.arena), dtype=torch.uint8)
    with pytest.raises(CheckpointError, match=r"h\.1\.ln_2\.bias"):
        bound_transformers_model(packed.config_json, "F32", arena, extents)
