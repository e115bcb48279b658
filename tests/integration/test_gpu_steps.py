"""A GPU's steps, padded to their shapes, with kernels that Triton's interpreter runs on the CPU (`conftest.py`)."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
import torch

from app.engine import step_inputs, step_shapes
from app.engine.kernels import attention
from app.engine.scheduler import Span
from app.engine.sequence import new_sequence
from app.messages import SamplingParams, Submit
from tests.decoding import PROMPTS, Engine, reference_tokens
from tests.integration.packed_class import packed_class
from tests.integration.packed_model import packed_model

TOKENS = 3
# What a step is padded with is whatever was there before: numpy warns of what it computes with it.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(autouse=True)
def small_shapes(monkeypatch):
    """The interpreter takes its time for every row."""
    monkeypatch.setattr(step_shapes, "_TOKENS_STEP", 8)
    monkeypatch.setattr(attention, "_ENOUGH_PROGRAMS", 16)


@pytest.mark.parametrize(
    ("model_type", "changes", "lookahead"),
    [("mistral", {"sliding_window": 5}, True), ("qwen3_moe", {"norm_topk_prob": True}, False)],
)
def test_padded_steps_generate_transformers_tokens(model_type, changes, lookahead):
    """Prompts in pieces beside sequences that decode, then decoding alone."""
    packed = packed_model(model_type, num_hidden_layers=1, **changes)
    expected = [reference_tokens(packed, prompt, TOKENS) for prompt in PROMPTS]
    engine = Engine(packed, max_num_seqs=3, max_num_batched_tokens=14, kernels=True, lookahead=lookahead)
    assert engine.generate(PROMPTS, max_tokens=TOKENS) == expected


def test_a_step_whose_inputs_were_half_written_leaves_nothing_behind(monkeypatch):
    """Whoever is in the same rows next gets transformers' tokens."""
    packed = packed_model(num_hidden_layers=1)
    engine = Engine(packed, max_num_seqs=2, kernels=True, lookahead=True)
    spans = []
    for prompt in PROMPTS[:2]:
        sequence = new_sequence(Submit("fails", tuple(prompt), SamplingParams(max_tokens=1)))
        sequence.block_ids = engine.blocks.allocate(3, after=None)
        spans.append(Span(sequence, 0, len(prompt)))
    with monkeypatch.context() as broken:
        broken.setattr(step_inputs, "upload", Mock(side_effect=RuntimeError("no memory")))
        with pytest.raises(RuntimeError, match="no memory"):
            engine.runner.launch(spans)
    for span in spans:
        engine.blocks.free(span.sequence.block_ids)
    expected = [reference_tokens(packed, prompt, TOKENS) for prompt in PROMPTS[:2]]
    assert engine.generate(PROMPTS[:2], max_tokens=TOKENS) == expected


def test_a_shape_that_cannot_be_captured_is_computed_without_a_graph(monkeypatch, caplog):
    """No memory left at capture, say: the reason is logged, every answer is the same, the engine lives."""

    def no_memory(*_args, **_options):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "graph", no_memory)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    packed = packed_model(num_hidden_layers=1)
    engine = Engine(packed, max_num_seqs=1, kernels=True)
    engine.runner._gpu_steps._pool = (0, 0)
    expected = [reference_tokens(packed, PROMPTS[1], TOKENS)]
    assert [engine.generate([PROMPTS[1]], max_tokens=TOKENS) for _ in range(3)] == [expected] * 3
    assert "without a CUDA graph: CUDA out of memory" in caplog.text


def test_padded_steps_generate_the_tokens_of_a_class_of_transformers():
    """Capped scores, windows in every other layer, a scale of its own."""
    packed = packed_class("gemma2")
    expected = [reference_tokens(packed, prompt, TOKENS) for prompt in PROMPTS]
    assert Engine(packed, max_num_seqs=3, kernels=True).generate(PROMPTS, max_tokens=TOKENS) == expected
