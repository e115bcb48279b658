"""app.engine.models.moe: every way of computing the experts gives what the definition says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.engine import row_ops
from app.engine.models import moe

HIDDEN, INNER = 12, 8


def by_definition(hidden, chosen, gate_up, down):
    """Each visit by itself."""
    answers = torch.empty(*chosen.shape, HIDDEN)
    for token, experts in enumerate(chosen.tolist()):
        for visit, expert in enumerate(experts):
            gate, up = (gate_up[expert] @ hidden[token]).split(INNER)
            answers[token, visit] = down[expert] @ (torch.nn.functional.silu(gate) * up)
    return answers


@pytest.mark.parametrize("way", [moe._one_by_one, moe._grouped, moe._gathered, moe._all_of_them, moe._run_experts])
@given(tokens=st.integers(1, 9), experts=st.integers(2, 7), data=st.data())
def test_every_way_gives_the_experts_answers(way, tokens, experts, data):
    """Any routing, also one that leaves experts without a token."""
    visits = data.draw(st.integers(1, experts))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))
    hidden = torch.randn(tokens, HIDDEN, generator=generator)
    gate_up = torch.randn(experts, 2 * INNER, HIDDEN, generator=generator)
    down = torch.randn(experts, HIDDEN, INNER, generator=generator)
    chosen = torch.rand(tokens, experts, generator=generator).topk(visits).indices
    expected = by_definition(hidden, chosen, gate_up, down)
    torch.testing.assert_close(way(hidden, chosen, gate_up, down, row_ops), expected, rtol=1e-4, atol=1e-4)
