"""Logprobs of prompts and answers, from the loop around a real decoder, against transformers' logits."""

from __future__ import annotations

from unittest.mock import Mock

import msgspec
import pytest
import torch

from app.engine.loop import Loop
from app.messages import FromEngine, SamplingParams, StepOutput, Submit, TokenOutput
from tests.decoding import PROMPTS, Engine
from tests.integration.packed_model import packed_model

MAX_TOKENS = 8


class Idle(Exception):
    """Every message was said and every sequence has ended."""


def serve(engine: Engine, submits: list[Submit]) -> dict[str, list[TokenOutput]]:
    """What the server reads of each sequence, as it comes out of the wire's format."""
    says: list[list[Submit]] = [submits]
    outputs: dict[str, list[TokenOutput]] = {submit.request_id: [] for submit in submits}

    def receive(block: bool) -> list[Submit]:
        if says:
            return says.pop()
        if block:
            raise Idle
        return []

    def send(message: FromEngine) -> None:
        decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=FromEngine)
        assert isinstance(decoded, StepOutput)
        for token in decoded.tokens:
            outputs[token.request_id].append(token)

    loop = Loop(
        receive=receive,
        send=send,
        scheduler=engine.scheduler,
        runner=engine.runner,
        max_model_len_tokens=64,
        vocab_size=engine.runner._model.config.vocab_size,
    )
    with pytest.raises(Idle):
        loop.run()
    return outputs


@pytest.mark.parametrize(
    ("sizes", "preempts"),
    [({}, False), ({"max_num_batched_tokens": 4}, False), ({"num_blocks": 11, "max_num_batched_tokens": 16}, True)],
    ids=["whole", "in pieces", "preempted"],
)
def test_logprobs_are_transformers(sizes, preempts):
    """Of every token of prompt and answer, however the prompt is cut and whoever must start again."""
    packed = packed_model()
    engine = Engine(packed, **sizes)
    preempt = engine.scheduler._preempt_youngest = Mock(wraps=engine.scheduler._preempt_youngest)
    sampling = SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0, logprobs=3, prompt_logprobs=2)
    submits = [Submit(str(index), tuple(prompt), sampling) for index, prompt in enumerate(PROMPTS)]
    outputs = serve(engine, submits)
    assert preempt.called == preempts
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
