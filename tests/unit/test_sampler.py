"""The sampler against plain references, token by token and in distribution."""

from __future__ import annotations

import math
from collections import Counter
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.sampling import sampler as sampler_module
from app.engine.sampling.checks import UnusableSampling, check_sampling
from app.engine.sampling.draws import _LIKELY_TOKENS
from app.engine.sampling.logprobs import score_prompt
from app.engine.sampling.ranking import top_ranked
from app.engine.sampling.sampler import Drawn, Sampler
from app.engine.sampling.uniform import uniforms
from app.engine.sequence import UNKNOWN_TOKEN, Sequence
from app.messages import SamplingParams

DRAWS = 100_000
LOGITS = [1.0, 3.0, -2.0, 2.5, 0.0, 2.0, -7.0]
GREEDY = {"temperature": 0.0}


def sequence(tokens: list[int] | None = None, *, prompt: int = 1, seed: int = 0, **sampling) -> Sequence:
    """A sequence of these tokens, of which the first `prompt` are its prompt."""
    params = SamplingParams(**{"max_tokens": 1000} | sampling)
    return Sequence("x", params, seed, prompt, list(tokens or [0]))


def sample(logits: torch.Tensor, sequences: list[Sequence]) -> list[int | None]:
    """Token ids, by a sampler that has seen no other batch."""
    return [drawn and drawn.token_id for drawn in Sampler().sample(logits, sequences)]


class Position:
    """Stands for so many tokens without holding them, for draws that look at nothing else."""

    def __init__(self, tokens: int):
        self.tokens = tokens

    def __len__(self) -> int:
        return self.tokens


def draw_many(logits: list[float], **sampling) -> Counter:
    """How often each token is drawn from these logits, over as many positions of one seed."""
    rows = 5_000
    sequences = [sequence(seed=3, **sampling) for _ in range(rows)]
    for at, each in enumerate(sequences):
        each.token_ids = Position(at)
    counts: Counter = Counter()
    batch, sampler = torch.tensor([logits]).expand(rows, -1), Sampler()
    for _ in range(DRAWS // rows):
        counts.update(drawn.token_id for drawn in sampler.sample(batch, sequences))
        for each in sequences:
            each.token_ids.tokens += rows
    return counts


def reference_distribution(
    logits: list[float], *, temperature: float = 1.0, min_p: float = 0.0, top_k: int = 0, top_p: float = 1.0
) -> np.ndarray:
    """Probabilities in float64: temperature, then min_p, then top_k, then top_p of what that leaves."""
    scaled = np.array(logits, dtype=np.float64) / temperature
    probabilities = np.exp(scaled - scaled.max())
    probabilities[probabilities < min_p * probabilities.max()] = 0
    order = np.argsort(-scaled, kind="stable")
    probabilities[order[top_k or len(logits) :]] = 0
    probabilities /= probabilities.sum()
    before = np.cumsum(probabilities[order]) - probabilities[order]
    probabilities[order[1:][before[1:] >= top_p]] = 0
    return probabilities / probabilities.sum()


def assert_follows(counts: Counter, expected: np.ndarray) -> None:
    """Chi-squared, at about five standard deviations: one false alarm in a million, and the seed is fixed."""
    assert counts.keys() <= set(np.flatnonzero(expected))
    kept = np.flatnonzero(expected * DRAWS >= 5)
    observed = np.array([counts[token] for token in kept])
    wanted = expected[kept] * DRAWS
    freedom = max(1, len(kept) - 1)
    assert ((observed - wanted) ** 2 / wanted).sum() <= freedom + 5 * math.sqrt(2 * freedom) + 15


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 1.0, "min_p": 0.2},
        {"temperature": 2.0, "top_k": 3},
        {"temperature": 1.0, "top_p": 0.7},
        {"temperature": 1.0, "top_p": 0.75},
        {"temperature": 1.5, "top_k": 5, "top_p": 0.7},
        {"temperature": 2.0, "min_p": 0.3, "top_k": 4, "top_p": 0.9},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 1.0, "top_k": 100},
        {"temperature": 1.0, "top_p": 0.0},
        {"temperature": 1.0, "min_p": 1.0},
    ],
)
def test_draws_follow_the_reference_distribution(sampling):
    """Over many positions of one seed every token comes as often as the reference says, and no other does."""
    assert_follows(draw_many(LOGITS, **sampling), reference_distribution(LOGITS, **sampling))


def test_bias_and_temperature_act_together_as_the_reference_says():
    """A bias counts before the temperature; tokens that are not allowed have no probability at all."""
    sampling = {"temperature": 1.5, "top_p": 0.95}
    biased = [*LOGITS]
    biased[4] += 2.5
    biased[1] = -math.inf
    allowed = tuple(token for token in range(len(LOGITS)) if token != 1)
    counts = draw_many(LOGITS, logit_bias=((4, 2.5), (1, 50.0)), allowed_token_ids=allowed, **sampling)
    assert_follows(counts, reference_distribution(biased, **sampling))


@pytest.mark.parametrize("top_k", [0, 40, _LIKELY_TOKENS + 100])
@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_a_large_vocabulary_is_truncated_as_a_small_one(spread, top_k):
    """Whether the nucleus lies among the first candidates or needs the whole sort, the kept set is the reference's."""
    logits = (torch.randn(8 * _LIKELY_TOKENS + 8, generator=torch.Generator().manual_seed(1)) * spread).tolist()
    sampling = {"temperature": 1.0, "top_k": top_k, "top_p": 0.6}
    kept = set(np.flatnonzero(reference_distribution(logits, **sampling)))
    sequences = [sequence([0] * (1 + at), seed=5, **sampling) for at in range(100)]
    drawn = set(sample(torch.tensor([logits] * 100), sequences))
    assert drawn <= kept
    assert len(drawn) >= min(len(kept), 20) / 2


KINDS = (
    GREEDY,
    {"temperature": 1.0},
    {"top_p": 0.7},
    {"temperature": 0.3, "top_k": 9},
    {"min_p": 0.1},
    {"min_p": 0.05, "top_k": 20, "top_p": 0.9},
    GREEDY | {"presence_penalty": 1.5, "frequency_penalty": 0.5},
    {"repetition_penalty": 1.7, "top_k": 5},
    GREEDY | {"logit_bias": ((3, 4.0), (4, -100.0))},
    {"allowed_token_ids": (1, 2, 3, 30)},
    GREEDY | {"logprobs": 3},
    {"logprobs": 0, "frequency_penalty": 1.0},
    GREEDY | {"bad_words": ((7,), (3, 5)), "min_tokens": 3, "stop_token_ids": (1, 2)},
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 3)), min_size=2, max_size=6),
    st.integers(0, 99),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_a_row_is_sampled_alone_as_in_any_batch(kinds, seed, dtype):
    """Over several steps, tokens and logprobs of a row are those that it has alone; equal logits included."""
    generator = torch.Generator().manual_seed(seed)
    together = [
        sequence([1, 5, 9], prompt=max(1, prompt), seed=seed, **kind)
        for kind, prompt in kinds
    ]  # fmt: skip
    alone = [Sequence("x", each.sampling, each.seed, each.prompt_tokens, list(each.token_ids)) for each in together]
    samplers, sampler = [Sampler() for _ in alone], Sampler()
    for _ in range(4):
        logits = torch.randn(len(kinds), 50, generator=generator).to(dtype)
        expected = [one.sample(logits[row : row + 1], [alone[row]])[0] for row, one in enumerate(samplers)]
        drawn = sampler.sample(logits, together)
        assert drawn == expected
        for row, token in enumerate(drawn):
            together[row].token_ids.append(token.token_id)
            alone[row].token_ids.append(token.token_id)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=3, max_size=8), st.integers(0, 99))
def test_a_changing_batch_draws_as_a_steady_one(presence, seed):
    """Whoever comes, leaves, or comes back between steps, a penalised and seeded sequence goes on as if alone."""
    kinds = ({"repetition_penalty": 1.4}, GREEDY | {"frequency_penalty": 0.9}, {"presence_penalty": 0.7, "top_p": 0.8})
    together = [sequence([2, 3], seed=seed, **kind) for kind in kinds]
    alone = [sequence([2, 3], seed=seed, **kind) for kind in kinds]
    generator = torch.Generator().manual_seed(seed)
    sampler = Sampler()
    for present in presence:
        rows = [row for row, here in enumerate(present) if here]
        logits = torch.randn(3, 12, generator=generator)
        for row, drawn in zip(rows, sampler.sample(logits[rows], [together[row] for row in rows]), strict=True):
            assert drawn == Sampler().sample(logits[row : row + 1], [alone[row]])[0]
            together[row].token_ids.append(drawn.token_id)
            alone[row].token_ids.append(drawn.token_id)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=2, max_size=8),
    st.lists(st.sampled_from(KINDS), min_size=4, max_size=4),
    st.integers(0, 99),
)
def test_a_step_launched_before_the_last_was_read_draws_the_same(presence, kinds, seed):
    """While the last token of each row is a placeholder, draws, penalties and logprobs are those that know it."""
    generator = torch.Generator().manual_seed(seed)
    kinds = [{name: value for name, value in kind.items() if name != "bad_words"} for kind in kinds]
    ahead = [sequence([2, 3], seed=seed, **kind) for kind in kinds]
    known = [sequence([2, 3], seed=seed, **kind) for kind in kinds]
    sampler, pending = Sampler(), None
    for present in presence:
        rows = [row for row, here in enumerate(present) if here]
        logits = torch.randn(4, 50, generator=generator)
        launched = sampler.launch(logits[rows], [ahead[row] for row in rows])
        if pending is not None:
            draw, drawn_rows, expected = pending
            drawn = draw.collect()
            assert drawn == expected
            for row, token in zip(drawn_rows, drawn, strict=True):
                ahead[row].learn_token(token.token_id)
        expected = Sampler().sample(logits[rows], [known[row] for row in rows])
        for row, token in zip(rows, expected, strict=True):
            ahead[row].expect_token()
            known[row].token_ids.append(token.token_id)
        pending = launched, rows, expected


def test_a_token_that_nobody_has_counted_is_an_error():
    """A penalty never counts a placeholder: who draws a token has it in its counts."""
    each = sequence([1, UNKNOWN_TOKEN], frequency_penalty=1.0)
    with pytest.raises(RuntimeError, match="not known yet"):
        Sampler().launch(torch.zeros(1, 9), [each])


def test_temperature_zero_is_argmax_and_the_first_of_equals():
    """Greedy rows take the largest logit; among equal ones the lowest id, as torch.argmax does."""
    logits = torch.tensor([[0.0, 5.0, 5.0, 1.0], [9.0, 5.0, 5.0, 1.0]])
    assert sample(logits, [sequence(**GREEDY), sequence(**GREEDY)]) == [1, 0]


@pytest.mark.parametrize("temperature", [1e-30, 1e-5, 2e-5])
def test_a_tiny_temperature_is_greedy(temperature):
    """Dividing by a temperature near zero overflows nothing."""
    assert sample(torch.tensor([[10.0, 50.0, 49.0]]), [sequence(temperature=temperature)]) == [1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_finite_fails_alone(kind, bad):
    """NaN or infinity in one row gives None for it and leaves the other row as it is."""
    good = torch.arange(50.0)[None]
    batch = good.repeat(2, 1)
    batch[0, 20] = bad
    alone = Sampler().sample(good, [sequence(**kind)])
    assert Sampler().sample(batch, [sequence(**kind), sequence(**kind)]) == [None, *alone]


def test_a_row_whose_every_token_is_forbidden_fails_alone():
    """Where a banned sequence leaves nothing of what is allowed, no token comes, rather than any."""
    stuck = sequence([0, 3], allowed_token_ids=(4,), bad_words=((3, 4),))
    assert sample(torch.zeros(2, 9), [stuck, sequence(**GREEDY)]) == [None, 0]


def test_a_logit_of_minus_infinity_is_never_drawn():
    """It has no probability, first or last in the vocabulary."""
    logits = torch.tensor([[-math.inf, 0.0, 0.0, -math.inf]] * 200)
    for sampling in ({}, {"top_p": 0.99}, {"top_k": 3}):
        assert set(sample(logits, [sequence([0] * (1 + at), **sampling) for at in range(200)])) == {1, 2}


def test_equal_logits_are_cut_at_the_lowest_ids():
    """top_k keeps exactly so many tokens, of equal ones the first; top_k 1 is argmax."""
    logits = torch.zeros(300, 64)
    drawn = sample(logits, [sequence([0] * (1 + at), top_k=3) for at in range(300)])
    assert set(drawn) == {0, 1, 2}
    assert set(sample(logits, [sequence([0] * (1 + at), top_k=1) for at in range(300)])) == {0}


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-40, -3e38, math.inf, -math.inf]), min_size=16), st.data())
def test_the_ranking_is_a_stable_sort(values, data):
    """Best first and the lowest id of equals, for few tokens (by keys) as for many (by a sort)."""
    count = data.draw(st.integers(1, len(values)))
    expected = sorted(range(len(values)), key=lambda token: (-values[token], token))[:count]
    assert top_ranked(torch.tensor([values]), count)[0].tolist() == expected


# Constraints and penalties


def test_a_repetition_penalty_divides_and_multiplies_what_was_there():
    """Tokens of prompt and output lose, whatever the sign of their logit; as in vLLM the bias comes first."""
    logits = torch.tensor([[4.0, 3.0, -1.0, -1.5]])
    assert sample(logits, [sequence([0], repetition_penalty=2.0, **GREEDY)]) == [1]
    biased = sequence([0], repetition_penalty=2.0, logit_bias=((0, 3.0),), **GREEDY)
    assert sample(logits, [biased]) == [0]  # (4 + 3) / 2 is more than 3, 4 / 2 + 3 would be as well
    assert sample(logits, [sequence([0], repetition_penalty=2.0, logit_bias=((0, 1.5),), **GREEDY)]) == [1]
    assert sample(-logits, [sequence([2], repetition_penalty=2.0, **GREEDY)]) == [3]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=12),
    st.floats(-2, 2),
    st.floats(-2, 2),
    st.floats(0.2, 3),
)
def test_penalties_equal_a_naive_recount(prompt, generated, presence, frequency, repetition):
    """After any tokens, drawn here or appended behind the sampler's back, the scores are those of a recount."""
    penalised = sequence(
        prompt,
        prompt=len(prompt),
        temperature=0.0,
        presence_penalty=presence,
        frequency_penalty=frequency,
        repetition_penalty=repetition,
        logprobs=0,
    )
    sampler = Sampler()
    for step, (other, alone) in enumerate(generated):
        raw = torch.randn(10, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        scores = raw.clone()
        output = Counter(penalised.token_ids[len(prompt) :])
        for token in range(10):
            if token in penalised.token_ids:
                scores[token] = scores[token] / repetition if scores[token] > 0 else scores[token] * repetition
            scores[token] -= frequency * output[token] + presence * (output[token] > 0)
        drawn = sampler.sample(raw.float()[None], [penalised])[0]
        assert scores[drawn.token_id] >= scores.max() - 1e-5
        penalised.token_ids += [drawn.token_id] if alone else [drawn.token_id, other]


@pytest.mark.parametrize("method", ["__init__", "values"])
def test_a_step_that_fails_is_forgotten(monkeypatch, method):
    """A sampler that failed halfway through a step, or while it was read, goes on as if that step had never been."""
    each = sequence([0], frequency_penalty=2.0, logprobs=0, **GREEDY)
    logits = torch.tensor([[3.0, 2.5, 2.0, 1.0]])
    sampler = Sampler()
    each.token_ids.append(sampler.sample(logits, [each])[0].token_id)
    with monkeypatch.context() as poisoned:
        poisoned.setattr(sampler_module.Readback, method, Mock(side_effect=torch.OutOfMemoryError))
        with pytest.raises(torch.OutOfMemoryError):
            sampler.sample(logits, [each])
    assert sampler.sample(logits, [each]) == Sampler().sample(logits, [each])
    assert sampler.sample(logits, [each])[0].token_id == 1


def test_min_tokens_holds_every_stop_token_back():
    """No token that ends the sequence comes before so many others; one outside the vocabulary is no matter."""
    each = sequence([0], min_tokens=2, stop_token_ids=(3, 2, 99), **GREEDY)
    logits = torch.tensor([[0.0, 1.0, 5.0, 9.0]])
    sampler = Sampler()
    drawn = []
    for _ in range(3):
        token = sampler.sample(logits, [each])[0]
        drawn.append(token.token_id)
        each.token_ids.append(token.token_id)
    assert drawn == [1, 1, 3]


def test_a_banned_sequence_is_never_completed():
    """Its last token is forbidden right behind the others, in the output; elsewhere it may come."""
    logits = torch.tensor([[0.0, 1.0, 2.0, 9.0]])
    words = ((1, 2, 3), (0,))
    following = {
        (): 3,
        (2,): 3,
        (1,): 3,
        (1, 2): 2,
        (3, 1, 2): 2,
        (1, 2, 1): 3,
    }
    for output, expected in following.items():
        assert sample(logits, [sequence([1, 2, *output], prompt=2, bad_words=words, **GREEDY)]) == [expected]
    only = sequence([1], allowed_token_ids=(0, 1), bad_words=words, **GREEDY)
    assert sample(logits, [only]) == [1]


@given(
    st.lists(st.integers(0, 3), max_size=8), st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), max_size=4)
)
def test_banned_sequences_equal_a_search_of_the_text(output, words):
    """A token may come exactly if no banned sequence then ends the output."""
    allowed = [token for token in range(4) if not any([*output, token][-len(word) :] == word for word in words)]
    each = sequence([9, *output], prompt=1, bad_words=tuple(map(tuple, words)), **GREEDY)
    assert sample(torch.tensor([[4.0, 3.0, 2.0, 1.0]]), [each]) == [min(allowed, default=None)]


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        ({"logit_bias": ((50, 1.0),)}, "logit_bias: token id 50"),
        ({"logit_bias": ((-1, 1.0),)}, "logit_bias: token id -1"),
        ({"logit_bias": ((1, math.nan),)}, "logit_bias"),
        ({"logit_bias": ((1, 1e39),)}, "logit_bias"),
        ({"allowed_token_ids": (1, 50)}, "allowed_token_ids"),
        ({"bad_words": ((1, 50),)}, "bad_words"),
        ({"bad_words": ((),)}, "bad_words"),
        ({"allowed_token_ids": (1, 2), "bad_words": ((1,), (2,))}, "no token"),
        ({"allowed_token_ids": (1,), "stop_token_ids": (1,), "min_tokens": 1}, "no token"),
        ({"min_tokens": 1001}, "min_tokens"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": -0.5}, "min_p"),
        ({"top_k": -1}, "top_k"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"repetition_penalty": 1e39}, "repetition_penalty"),
        ({"presence_penalty": math.inf}, "presence_penalty"),
        ({"logprobs": 51}, "logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
    ],
)
def test_parameters_without_meaning_are_refused_by_name(bad, complaint):
    """What would fail or corrupt a step is found before one."""
    with pytest.raises(UnusableSampling, match=complaint):
        check_sampling(SamplingParams(**{"max_tokens": 1000} | bad), 50)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_with_a_meaning_are_taken(kind):
    """The kinds of this file pass."""
    check_sampling(SamplingParams(max_tokens=1000, **kind), 50)


# Logprobs


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.sampled_from(KINDS), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_logprobs_are_log_softmax_of_the_raw_logits(seed, kind, dtype):
    """Whatever the parameters do to the draw, the logprobs are the model's own; alternatives come best first."""
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(seed)).to(dtype)
    rows = [sequence([1, 2], seed=seed, **kind | {"logprobs": 4}), sequence(**GREEDY)]
    drawn, plain = Sampler().sample(logits, rows)
    expected = logits[0].float().log_softmax(-1)
    got = drawn.logprobs
    assert got.logprob == expected[drawn.token_id].item()
    assert got.rank == 1 + int((logits[0] > logits[0][drawn.token_id]).sum())
    assert list(got.top_logprobs) == expected.sort(descending=True).values[:4].tolist()
    assert [expected[token].item() for token in got.top_token_ids] == list(got.top_logprobs)
    assert plain == Drawn(plain.token_id, None)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.0000001, 1000.0]), min_size=9, max_size=20))
def test_a_greedy_token_is_its_own_first_alternative(logits):
    """Exactly: same id, same logprob, rank 1, also among equals and where float32 rounds differences away."""
    drawn = Sampler().sample(torch.tensor([logits]), [sequence(logprobs=1, **GREEDY)])[0]
    assert drawn.logprobs.top_token_ids == (drawn.token_id,)
    assert drawn.logprobs.top_logprobs == (drawn.logprobs.logprob,)
    assert drawn.logprobs.rank == 1


def test_as_many_alternatives_as_each_row_asks_for():
    """None, 0 and different numbers stand side by side in one batch."""
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    drawn = Sampler().sample(logits, [sequence(logprobs=count) for count in (None, 0, 2, 50)])
    assert drawn[0].logprobs is None
    assert [len(each.logprobs.top_token_ids) for each in drawn[1:]] == [0, 2, 50]
    assert [len(each.logprobs.top_logprobs) for each in drawn[1:]] == [0, 2, 50]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 150), st.data())
def test_prompt_logprobs_do_not_depend_on_the_pieces(prompt_tokens, data):
    """However a prompt is cut, and begun again, each token but the first is scored once, by the one before it."""
    generator = torch.Generator().manual_seed(prompt_tokens)
    hidden, head = torch.randn(prompt_tokens, 4, generator=generator), torch.randn(4, 11, generator=generator)
    tokens = torch.randint(11, (prompt_tokens,), generator=generator).tolist()
    each = sequence(tokens, prompt=prompt_tokens, prompt_logprobs=2, **GREEDY)
    sampler, at, restarts = Sampler(), 0, 1
    while at < prompt_tokens:
        until = data.draw(st.integers(at + 1, prompt_tokens))
        if each.needs_prompt_logits:
            scores = score_prompt(each, at, until, hidden[at:until], lambda rows: rows @ head)
            sampler.launch(torch.zeros(0, 11), [], [scores]).collect()
        at = until
        if restarts and data.draw(st.booleans()):
            at, restarts = 0, 0
    expected = (hidden @ head).log_softmax(-1)
    got = each.prompt_logprobs
    assert not each.needs_prompt_logits
    assert [entry.logprob for entry in got] == pytest.approx(
        [expected[row, tokens[row + 1]].item() for row in range(prompt_tokens - 1)], abs=1e-5
    )
    assert all(len(entry.top_token_ids) == 2 and entry.rank >= 1 for entry in got)


def test_a_prompt_that_was_skipped_is_an_error():
    """Prompt logprobs of tokens whose keys came from a cache cannot be made up."""
    each = sequence([1, 2, 3, 4], prompt=4, prompt_logprobs=0)
    with pytest.raises(RuntimeError, match="position 0 was skipped"):
        score_prompt(each, 2, 4, torch.zeros(2, 4), lambda rows: rows)


# Uniform numbers


def splitmix64(seed: int, position: int) -> float:
    """The position-th output behind a hashed seed, by Python's integers."""

    def mix(value: int) -> int:
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
        return value ^ value >> 31

    return (mix((mix(seed % 2**64) + position * 0x9E3779B97F4A7C15) % 2**64) >> 11) / 2**53


@given(st.lists(st.tuples(st.integers(-(1 << 70), 1 << 70), st.integers(0, 1 << 20)), min_size=1, max_size=4))
def test_uniform_numbers_are_splitmix64s(keys):
    """Any seeds, negative or huge, at any positions: the reference's numbers, all of them in [0, 1)."""
    got = uniforms([seed for seed, _ in keys], [position for _, position in keys], 3)
    assert got.tolist() == [[splitmix64(seed, position + step) for step in range(3)] for seed, position in keys]
    assert ((got >= 0) & (got < 1)).all()


def test_neighbouring_seeds_and_positions_are_independent():
    """Uniform numbers of a grid of seeds and positions have no correlation along either axis."""
    grid = uniforms(range(200), [0] * 200, 200)
    for first, second in ((grid[1:], grid[:-1]), (grid[:, 1:], grid[:, :-1])):
        correlation = torch.corrcoef(torch.stack((first.flatten(), second.flatten())))[0, 1]
        assert abs(correlation) < 0.03
    assert abs(grid.mean() - 0.5) < 0.01


def test_a_long_answer_is_drawn_by_its_positions():
    """Step by step, and begun anywhere by another sampler, position for position the same tokens."""
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    steady, sampler = sequence(seed=8), Sampler()
    for _ in range(80):
        steady.token_ids.append(sampler.sample(logits, [steady])[0].token_id)
    for length in range(1, 80, 7):
        assert sample(logits, [sequence(steady.token_ids[:length], seed=8)]) == [steady.token_ids[length]]
