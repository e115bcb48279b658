"""The static inputs of a decode step, against the spans they were written from."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from app.engine.decode_inputs import DecodeInputs
from app.engine.scheduler import Span
from app.engine.sequence import Sequence
from app.messages import SamplingParams

BLOCK_SIZE, BLOCKS, ROWS = 4, 8, 6


class Cache:
    """As much of a KV cache as is looked at."""

    device = torch.device("cpu")
    scratch_slot = 1000

    def slot(self, block_ids: list[int], position: int) -> int:
        """Blocks are runs of slots."""
        return block_ids[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE


def sequence(name: str) -> Sequence:
    return Sequence(name, SamplingParams(max_tokens=1), 0, 1, [7], block_ids=[ord(name)])


@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from("abcdefgh"), unique=True, min_size=1, max_size=ROWS), st.sampled_from("abcdefgh -")
        ),
        min_size=1,
        max_size=25,
    ),
    st.randoms(use_true_random=False),
)
def test_every_row_says_where_its_sequence_lies(steps, random):
    """Whoever joins, leaves, changes its row, grows or is preempted: tables, slots, tokens and positions are right."""
    inputs = DecodeInputs(Cache(), ROWS, BLOCKS)
    sequences = {name: sequence(name) for name in "abcdefgh"}
    for running, preempted in steps:
        if preempted in sequences:
            sequences[preempted].block_ids = [random.randrange(200) for _ in sequences[preempted].block_ids]
        for name in running:
            one = sequences[name]
            if len(one.token_ids) < BLOCKS * BLOCK_SIZE:
                one.token_ids.append(random.randrange(100))
            while len(one.block_ids) * BLOCK_SIZE < len(one.token_ids):
                one.block_ids.append(random.randrange(200))
        spans = [Span(one, len(one.token_ids) - 1, len(one.token_ids)) for one in map(sequences.get, running)]
        inputs.write(spans, ROWS)
        for row, span in enumerate(spans):
            blocks = span.sequence.block_ids
            assert inputs.block_tables[row, : len(blocks)].tolist() == blocks
            assert inputs.token_ids[row] == span.sequence.token_ids[-1]
            assert inputs.positions[row] == span.start
            assert inputs.slots[row] == Cache().slot(blocks, span.start)
        assert set(inputs.slots[len(spans) :].tolist()) <= {Cache.scratch_slot}
        assert set(inputs.positions[len(spans) :].tolist()) <= {-1}
