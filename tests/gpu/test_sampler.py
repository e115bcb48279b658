"""The sampler on a GPU: the CPU's tokens, and one wait per step."""

from __future__ import annotations

import pytest
import torch

from app.engine.sampling.device import Readback
from app.engine.sampling.ranking import top_ranked
from app.engine.sampling.sampler import Sampler
from app.engine.sequence import Sequence
from app.messages import SamplingParams

pytestmark = pytest.mark.gpu
VOCABULARY = 5000
KINDS = (
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"top_p": 0.7},
    {"top_k": 9},
    {"min_p": 0.05, "top_k": 50, "top_p": 0.9},
    {"repetition_penalty": 1.7, "presence_penalty": 0.5, "frequency_penalty": 0.5},
    {"logit_bias": ((3, 4.0),), "bad_words": ((7,), (3, 5)), "min_tokens": 3, "stop_token_ids": (1, 2)},
    {"allowed_token_ids": (1, 2, 3, 30), "logprobs": 3},
)


def sequences(kinds: tuple[dict, ...]) -> list[Sequence]:
    return [Sequence("x", SamplingParams(max_tokens=99, **kind), row, 1, [1]) for row, kind in enumerate(kinds)]


@pytest.mark.parametrize("kinds", [KINDS, KINDS[:1], KINDS[1:2], KINDS[:4]])
def test_tokens_are_the_cpus_and_the_host_waits_once(kinds, monkeypatch):
    """Over several steps of one batch, with every other wait of the host for the GPU made an error."""
    waits = 0

    def values(readback, real=Readback.values):
        nonlocal waits
        waits += readback._arrived is not None
        torch.cuda.set_sync_debug_mode("default")
        return real(readback)

    monkeypatch.setattr(Readback, "values", values)
    on_cpu, on_gpu = sequences(kinds), sequences(kinds)
    samplers = Sampler(), Sampler()
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        logits = torch.randn(len(kinds), VOCABULARY, generator=generator).bfloat16()
        there = logits.cuda()
        torch.cuda.set_sync_debug_mode("error")
        try:
            drawn = samplers[1].sample(there, on_gpu)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        expected = samplers[0].sample(logits, on_cpu)
        assert [token.token_id for token in drawn] == [token.token_id for token in expected]
        for row, token in enumerate(expected):
            on_cpu[row].token_ids.append(token.token_id)
            on_gpu[row].token_ids.append(token.token_id)
    assert waits == 5


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_fails_alone(bad):
    """No kernel asserts, no other row changes."""
    rows = sequences(KINDS)
    logits = torch.randn(len(KINDS), VOCABULARY, generator=torch.Generator().manual_seed(0)).cuda()
    expected = Sampler().sample(logits, sequences(KINDS))
    for row in range(len(KINDS)):
        broken = logits.clone()
        broken[row] = bad
        assert Sampler().sample(broken, rows) == [*expected[:row], None, *expected[row + 1 :]]


def test_equal_values_are_ranked_as_on_the_cpu():
    """Thousands of ties: lowest ids first, by keys as by a sort."""
    values = torch.randint(0, 5, (3, VOCABULARY), generator=torch.Generator().manual_seed(0)).float()
    for count in (1, 50, VOCABULARY):
        assert torch.equal(top_ranked(values.cuda(), count).cpu(), top_ranked(values, count))
