"""The engine on a GPU: views of the arena, graphs equal to eager, rows that do not touch one another."""

from __future__ import annotations

import pytest
import torch

from app.engine.skeleton import bind, build_skeleton
from tests.decoding import PROMPTS, Engine, logits_error, reference_tokens
from tests.integration.packed_class import VARIANTS as CLASSES
from tests.integration.packed_class import packed_class
from tests.integration.packed_model import VARIANTS, packed_model, packed_variant

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def exact():
    """Float32 products as the CPU makes them, as far as a GPU can."""
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_is_a_view_whose_bytes_may_come_later(variant):
    """Bound to zeros, then landed: the model's parameters are the checkpoint's, none was copied."""
    packed = packed_variant(variant)
    arena = torch.zeros(len(packed.arena), dtype=torch.uint8, device=GPU)
    model = build_skeleton(packed.config_json, packed.extents, GPU)
    bind(model, arena, packed.extents)
    assert all(not parameter.any() for parameter in model.parameters())
    arena.copy_(torch.frombuffer(bytearray(packed.arena), dtype=torch.uint8))
    for name, parameter in model.named_parameters():
        extent = packed.extents[name]
        landed = packed.arena[extent.start : extent.start + extent.nbytes]
        assert parameter.data_ptr() == arena.data_ptr() + extent.start
        assert parameter.detach().cpu().view(torch.uint8).numpy().tobytes() == landed


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_tokens_are_transformers(variant):
    """In float32, with torch's operations and with kernels and graphs: alone, in padded batches, blocks out of order."""
    packed = packed_variant(variant)
    expected_tokens = [reference_tokens(packed, prompt) for prompt in PROMPTS]
    for kernels in (False, True):
        engine = Engine(packed, device=GPU, kernels=kernels)
        for _ in ("as it is", "captured", "replayed"):
            for prompt in PROMPTS:
                assert logits_error(engine, packed, prompt) < 1e-3
        assert [engine.generate([prompt])[0] for prompt in PROMPTS] == expected_tokens
        assert engine.generate(PROMPTS) == expected_tokens


@pytest.mark.parametrize("variant", CLASSES)
def test_classes_of_transformers_are_themselves(variant):
    """In float32, without graphs: logits and tokens of the class alone on the CPU."""
    packed = packed_class(variant)
    for kernels in (False, True):
        engine = Engine(packed, device=GPU, kernels=kernels)
        assert not engine.runner.capture_next_graph()
        for prompt in PROMPTS:
            assert logits_error(engine, packed, prompt) < 1e-3
        assert engine.generate(PROMPTS) == [reference_tokens(packed, prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("variant", ["mixtral", "qwen3 moe, normalised"])
def test_experts_in_bfloat16_follow_transformers(variant):
    """Grouped products, captured."""
    packed = packed_variant(variant, torch.bfloat16)
    engine = Engine(packed, device=GPU, kernels=True)
    while engine.runner.capture_next_graph():
        pass
    for prompt in PROMPTS:
        assert logits_error(engine, packed, prompt) < 3e-2


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("variant", ["gqa, tied", "mistral, window", "qwen3 moe, normalised"])
def test_a_step_that_is_launched_early_goes_on_from_the_devices_tokens(variant, kernels):
    """In float32: with lookahead the tokens of `generate`, also where a sequence starts over."""
    packed = packed_variant(variant)
    for num_blocks in (64, 13):
        engine = Engine(packed, device=GPU, num_blocks=num_blocks, lookahead=True, kernels=kernels)
        assert engine.generate(PROMPTS) == [reference_tokens(packed, prompt) for prompt in PROMPTS]
        assert bool(engine.scheduler.preemptions) == (num_blocks == 13)


@pytest.mark.parametrize("kernels", [False, True])
def test_a_launch_never_waits_for_the_gpu(kernels):
    """With every wait of the host for the GPU made an error, but for the one where a step is read."""
    engine = Engine(packed_model(), device=GPU, lookahead=True, kernels=kernels)
    while engine.runner.capture_next_graph():
        pass
    launch = engine.runner.launch

    def checked(spans):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return launch(spans)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    engine.runner.launch = checked
    for sampling in ({}, {"temperature": 1.0, "top_p": 0.9, "seed": 1}, {"repetition_penalty": 1.5, "logprobs": 2}):
        assert len(engine.generate(PROMPTS, **sampling)) == len(PROMPTS)


@pytest.mark.parametrize("captured", [False, True])
def test_garbage_in_other_blocks_does_not_reach_a_row(captured):
    """The cache full of NaN, graphs captured in advance or as steps need them: nothing beyond a row's context is read."""
    packed = packed_model()
    engine = Engine(packed, device=GPU, kernels=True)
    for keys, values in engine.runner._cache.layers:
        keys.fill_(torch.nan)
        values.fill_(torch.nan)
    while captured and engine.runner.capture_next_graph():
        pass
    assert engine.generate(PROMPTS) == [reference_tokens(packed, prompt) for prompt in PROMPTS]


def test_a_shape_that_cannot_be_captured_is_computed_without_a_graph(monkeypatch, caplog):
    """No memory left at capture, say: the reason is logged, the answers are the same."""
    packed = packed_model()
    engine = Engine(packed, device=GPU, kernels=True)

    def no_memory(*_args, **_options):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "graph", no_memory)
    expected = [reference_tokens(packed, prompt) for prompt in PROMPTS]
    assert [engine.generate(PROMPTS) for _ in range(3)] == [expected] * 3
    assert "without a CUDA graph: CUDA out of memory" in caplog.text
