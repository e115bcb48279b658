"""The sampler against a plain reference, token by token and in distribution."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.engine.sampler import Draw, sample, uniform
from app.messages import SamplingParams

DRAWS = 20_000


def draw(seed: int = 0, position: int = 0, **sampling) -> Draw:
    return Draw(SamplingParams(max_tokens=1, **sampling), seed, position)


def reference_distribution(logits: list[float], *, temperature: float, top_k: int = 0, top_p: float = 1.0):
    """Probabilities by token id: temperature, then top_k, then top_p of what that leaves."""
    weights = {token: math.exp((value - max(logits)) / temperature) for token, value in enumerate(logits)}
    ordered = sorted(weights, key=lambda token: -weights[token])[: top_k or len(logits)]
    total = sum(weights[token] for token in ordered)
    kept, mass = [], 0.0
    for token in ordered:
        if kept and mass >= top_p:
            break
        kept.append(token)
        mass += weights[token] / total
    kept_total = sum(weights[token] for token in kept)
    return {token: weights[token] / kept_total for token in kept}


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 2.0, "top_k": 3},
        {"temperature": 1.0, "top_p": 0.7},
        {"temperature": 1.0, "top_p": 0.75},
        {"temperature": 1.5, "top_k": 5, "top_p": 0.7},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 1.0, "top_p": 0.0},
    ],
)
def test_draws_follow_the_reference_distribution(sampling):
    """Over many positions of one seed every token comes as often as the reference says, and no other does."""
    logits = [1.0, 3.0, -2.0, 2.5, 0.0, 2.0, -7.0]
    drawn = sample(torch.tensor([logits] * DRAWS), [draw(seed=3, position=at, **sampling) for at in range(DRAWS)])
    counts = Counter(drawn)
    expected = reference_distribution(logits, **sampling)
    assert counts.keys() <= expected.keys()
    for token, probability in expected.items():
        # Five standard deviations of a binomial: one false alarm in millions, and the seed is fixed.
        tolerance = 5 * math.sqrt(DRAWS * probability * (1 - probability)) + 1
        assert abs(counts[token] - DRAWS * probability) <= tolerance


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 50)), min_size=2, max_size=6), st.integers(0, 99))
def test_a_row_is_drawn_alone_as_in_any_batch(kinds, seed):
    """A row's token depends on its own logits, parameters, seed and position only."""
    samplings = ({"temperature": 0.0}, {"temperature": 1.0}, {"top_p": 0.7}, {"temperature": 0.3, "top_k": 9})
    logits = torch.randn(len(kinds), 50, generator=torch.Generator().manual_seed(seed))
    draws = [draw(seed=seed, position=position, **samplings[kind]) for kind, position in kinds]
    alone = [sample(logits[row : row + 1], [draws[row]])[0] for row in range(len(kinds))]
    assert sample(logits, draws) == alone


def test_temperature_zero_is_argmax_and_the_first_of_equals():
    """Greedy rows take the largest logit; among equal ones the lowest id, as torch.argmax does."""
    logits = torch.tensor([[0.0, 5.0, 5.0, 1.0], [9.0, 5.0, 5.0, 1.0]])
    assert sample(logits, [draw(temperature=0.0)] * 2) == [1, 0]


def test_a_tiny_temperature_is_nearly_greedy():
    """Dividing by a temperature near zero overflows nothing."""
    assert sample(torch.tensor([[10.0, 50.0, 49.0]]), [draw(temperature=1e-30)]) == [1]


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 1.0}, {"top_k": 2}])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_finite_fails_alone(sampling, bad):
    """NaN or infinity in one row gives None for it and leaves the other row as it is."""
    good = [1.0, 2.0, 3.0]
    batch = torch.tensor([[1.0, bad, 3.0], good])
    assert sample(batch, [draw(**sampling)] * 2) == [None, *sample(torch.tensor([good]), [draw(**sampling)])]


def test_a_forbidden_token_is_never_drawn():
    """A logit of minus infinity has no probability, first or last in the vocabulary."""
    logits = torch.tensor([[-math.inf, 0.0, 0.0, -math.inf]] * 200)
    for sampling in ({}, {"top_p": 0.99}):
        assert set(sample(logits, [draw(position=at, **sampling) for at in range(200)])) == {1, 2}


@given(st.integers(-(1 << 70), 1 << 70), st.integers(0, 1 << 20))
def test_the_uniform_number_is_below_one(seed, position):
    """Any seed, negative or huge, gives a number in [0, 1)."""
    assert 0.0 <= uniform(seed, position) < 1.0


def test_neighbouring_seeds_and_positions_are_independent():
    """Uniform numbers of a grid of seeds and positions have no correlation along either axis."""
    grid = torch.tensor([[uniform(seed, at) for at in range(200)] for seed in range(200)])
    for first, second in ((grid[1:], grid[:-1]), (grid[:, 1:], grid[:, :-1])):
        correlation = torch.corrcoef(torch.stack((first.flatten(), second.flatten())))[0, 1]
        assert abs(correlation) < 0.03
    assert abs(grid.mean() - 0.5) < 0.01
