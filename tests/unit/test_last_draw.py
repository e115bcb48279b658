"""Unknown tokens of a step, from the tokens that the step before has drawn."""

from __future__ import annotations

import pytest
import torch

from app.engine.last_draw import LastDraw, filled
from app.engine.sequence import UNKNOWN_TOKEN, Sequence
from app.messages import SamplingParams


def sequence() -> Sequence:
    return Sequence("x", SamplingParams(max_tokens=1), 0, 1, [0])


def test_an_unknown_token_is_the_one_that_was_drawn_for_its_sequence():
    """Whatever the order of the rows now; tokens that are known stay."""
    first, second = sequence(), sequence()
    last = LastDraw(4, torch.device("cpu"))
    address = last.token_ids.data_ptr()
    last.keep([first, second], torch.tensor([11, 12]))
    sources = torch.tensor([0, last.source(second), 0, last.source(first)])
    token_ids = torch.tensor([5, UNKNOWN_TOKEN, 6, UNKNOWN_TOKEN])
    assert filled(token_ids, sources, last.token_ids).tolist() == [5, 12, 6, 11]
    assert last.token_ids.data_ptr() == address


def test_a_sequence_that_was_not_in_the_last_launch_has_no_source():
    """A token from an older launch would be another sequence's."""
    first, second = sequence(), sequence()
    last = LastDraw(2, torch.device("cpu"))
    last.keep([first], torch.tensor([1]))
    last.keep([second], torch.tensor([2]))
    with pytest.raises(KeyError):
        last.source(first)
