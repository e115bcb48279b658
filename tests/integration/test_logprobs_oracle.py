"""Logprobs of prompts and answers, from the loop around a real decoder, against transformers' logits."""

from __future__ import annotations

import pytest
import torch

from app.messages import SamplingParams, Submit
from tests.decoding import PROMPTS, Engine
from tests.integration.packed_model import packed_model

MAX_TOKENS = 8


@pytest.mark.parametrize("lookahead", [False, True])
@pytest.mark.parametrize(
    ("sizes", "preempts"),
    [({}, False), ({"max_num_batched_tokens": 4}, False), ({"num_blocks": 11, "max_num_batched_tokens": 16}, True)],
    ids=["whole", "in pieces", "preempted"],
)
def test_logprobs_are_transformers(sizes, preempts, lookahead):
    """Of every token of prompt and answer, however the prompt is cut and whoever must start again."""
    packed = packed_model()
    engine = Engine(packed, lookahead=lookahead, **sizes)
    sampling = SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0, logprobs=3, prompt_logprobs=2)
    submits = [Submit(str(index), tuple(prompt), sampling) for index, prompt in enumerate(PROMPTS)]
    outputs = engine.serve(submits)
    assert bool(engine.scheduler.preemptions) == preempts
    for prompt, tokens in zip(PROMPTS, outputs.values(), strict=True):
        assert len(tokens) == MAX_TOKENS
        assert all(token.prompt_logprobs is None for token in tokens[1:])
        text = [*prompt, *(token.token_id for token in tokens)]
        with torch.no_grad():
            expected = packed.reference(torch.tensor([text])).logits[0].float().log_softmax(-1)
        entries = [*tokens[0].prompt_logprobs, *(token.logprobs for token in tokens)]
        assert len(entries) == len(text) - 1
        for position, entry in enumerate(entries):
            row = expected[position]
            assert entry.logprob == pytest.approx(row[text[position + 1]].item(), abs=1e-4)
            count = 2 if position < len(prompt) - 1 else 3
            assert list(entry.top_logprobs) == pytest.approx(row.topk(count).values.tolist(), abs=1e-4)
            assert len(entry.top_token_ids) == count
        assert all(token.logprobs.rank == 1 for token in tokens)
        assert all(token.logprobs.top_token_ids[0] == token.token_id for token in tokens)
