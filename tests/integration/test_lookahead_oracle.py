"""Steps that are launched before the last was read, on a real decoder, against each request alone and transformers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.messages import Abort, SamplingParams, Submit, TokenOutput
from tests.decoding import PROMPTS, Engine, reference_tokens
from tests.integration.packed_model import PackedModel, packed_model, packed_variant

VOCABULARY = 131

WISHES = [
    *({} for _ in range(3)),
    {"stop_token_ids": tuple(range(0, VOCABULARY, 3)), "min_tokens": 3},
    {"temperature": 1.0, "seed": 4, "stop_token_ids": tuple(range(0, VOCABULARY, 6))},
    {"repetition_penalty": 1.5, "stop_token_ids": tuple(range(1, VOCABULARY, 6))},
    {"presence_penalty": 1.0, "frequency_penalty": 0.5, "temperature": 0.8, "top_k": 7, "seed": 5},
    {"logprobs": 2},
    {"temperature": 1.0, "top_p": 0.9, "seed": 6, "logprobs": 0, "max_tokens": 1},
    {"logit_bias": ((5, 4.0), (9, -50.0)), "max_tokens": 3},
]
READ_AT_ONCE = [
    {"prompt_logprobs": 1, "logprobs": 1},
    {"bad_words": tuple((first, second) for first in range(VOCABULARY) for second in range(first % 4, VOCABULARY, 4))},
]


def wished(wishes: list[dict]) -> list[Submit]:
    """One request per wish, some of which begin alike."""
    prompts = [[(3 * number + 5 * place) % 31 for place in range(4 + 3 * number)] for number in range(4)]
    return [
        Submit(str(at), (*prompts[at % 4], at % 3), SamplingParams(**{"max_tokens": 20, "temperature": 0.0} | wish))
        for at, wish in enumerate(wishes)
    ]


@pytest.fixture(scope="module")
def packed() -> PackedModel:
    """A tiny Llama."""
    return packed_model()


@pytest.fixture(scope="module")
def expected(packed) -> dict[str, list[int]]:
    """What each of the wishes gets in a roomy engine, without lookahead."""
    told = Engine(packed).serve(wished(WISHES))
    return {name: [token.token_id for token in tokens] for name, tokens in told.items()}


SIZES = {
    "roomy": {},
    "in pieces": {"max_num_batched_tokens": 5},
    "tight": {"num_blocks": 13},
    "tight, shared": {"num_blocks": 13, "prefix_caching": True, "max_num_batched_tokens": 9},
}


@pytest.mark.parametrize("wishes", [WISHES, WISHES + READ_AT_ONCE], ids=["ahead", "some read at once"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_a_step_that_is_launched_early_changes_no_answer(packed, sizes, wishes):
    """Whatever is asked for, with lookahead everybody gets what it gets without, alone: tokens, logprobs, reasons."""
    submits = wished(wishes)
    ahead = Engine(packed, lookahead=True, **sizes)
    alone = Engine(packed)
    told = ahead.serve(submits[:4], submits[4:7], [], submits[7:])
    for submit in submits:
        got, expected = told[submit.request_id], alone.serve([submit])[submit.request_id]
        assert [(token.token_id, token.finish_reason) for token in got] == [
            (token.token_id, token.finish_reason) for token in expected
        ]
        assert scores(got) == pytest.approx(scores(expected), abs=1e-4)
    assert bool(ahead.scheduler.preemptions) == ("num_blocks" in sizes)


def scores(tokens: list[TokenOutput]) -> list[float]:
    """Every logprob of an answer and of its prompt, in order."""
    entries = [*(tokens[0].prompt_logprobs or ()), *(token.logprobs for token in tokens if token.logprobs)]
    return [value for entry in entries for value in (entry.logprob, *entry.top_logprobs)]


@pytest.mark.parametrize("variant", ["gqa, tied", "mistral, window", "qwen3 moe, normalised"])
def test_a_step_that_is_launched_early_goes_on_from_transformers_tokens(variant):
    """Greedy decoding with lookahead gives exactly the tokens of `generate`."""
    packed = packed_variant(variant)
    expected = [reference_tokens(packed, prompt) for prompt in PROMPTS]
    for sizes in ({}, {"num_blocks": 13}, {"max_num_batched_tokens": 5, "prefix_caching": True}):
        assert Engine(packed, lookahead=True, **sizes).generate(PROMPTS) == expected


@settings(max_examples=25, deadline=None)
@given(random=st.randoms(use_true_random=True))
def test_aborts_at_any_time_change_nobody_elses_answer(packed, expected, random):
    """With lookahead and a tiny shared cache: what an aborted request has got so far is right, too."""
    submits = wished(WISHES)
    arrivals: list[list[Submit | Abort]] = [[] for _ in range(12)]
    for submit in submits:
        random.choice(arrivals[:6]).append(submit)
    aborted = {str(random.randrange(len(submits))) for _ in range(4)}
    for request_id in aborted:
        random.choice(arrivals).append(Abort(request_id))
    engine = Engine(packed, lookahead=True, num_blocks=random.randint(10, 16), prefix_caching=True)
    told = {name: [token.token_id for token in tokens] for name, tokens in engine.serve(*arrivals).items()}
    for name, tokens in told.items():
        assert tokens == (expected[name][: len(tokens)] if name in aborted else expected[name])
