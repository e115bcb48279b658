"""Unknown tokens of a step, from the tokens that the step before has drawn."""

from __future__ import annotations

import pytest
import torch

from app.engine.last_draw import LastDraw, filled
from app.engine.scheduler import Span
from app.engine.sequence import UNKNOWN_TOKEN, Sequence
from app.messages import SamplingParams


def sequence(*token_ids: int) -> Sequence:
    return Sequence("x", SamplingParams(max_tokens=1), 0, 1, list(token_ids))


def test_an_unknown_token_is_the_one_that_was_drawn_for_its_sequence():
    """Whatever the order of the rows now; tokens that are known stay."""
    first, second, known = sequence(3, UNKNOWN_TOKEN), sequence(5, 6, UNKNOWN_TOKEN), sequence(7, 8)
    last = LastDraw(4, torch.device("cpu"))
    address = last.token_ids.data_ptr()
    last.keep([first, second], torch.tensor([11, 12]))
    sources = last.sources([Span(second, 1, 3), Span(known, 0, 2), Span(first, 1, 2)])
    token_ids = torch.tensor([6, UNKNOWN_TOKEN, 7, 8, UNKNOWN_TOKEN])
    assert filled(token_ids, torch.tensor(sources), last.token_ids).tolist() == [6, 12, 7, 8, 11]
    assert last.token_ids.data_ptr() == address


def test_a_sequence_that_was_not_in_the_last_launch_has_no_source():
    """A token from an older launch would be another sequence's."""
    first, second = sequence(3, UNKNOWN_TOKEN), sequence(4, UNKNOWN_TOKEN)
    last = LastDraw(2, torch.device("cpu"))
    last.keep([first], torch.tensor([1]))
    last.keep([second], torch.tensor([2]))
    with pytest.raises(KeyError):
        last.sources([Span(first, 1, 2)])
