"""The static inputs of a GPU's step, against the spans they were written from; the shapes they are padded to."""

from __future__ import annotations

from random import Random
from types import SimpleNamespace

import torch
from hypothesis import given
from hypothesis import strategies as st

from app.engine.kv_cache import KVCache
from app.engine.last_draw import LastDraw
from app.engine.scheduler import Span
from app.engine.sequence import Sequence
from app.engine.step_inputs import StepInputs
from app.engine.step_shapes import Limits, all_shapes, shape_of
from app.messages import SamplingParams

BLOCK_SIZE, BLOCKS, ROWS, TOKENS, TILE = 4, 8, 6, 64, 3
CACHE = KVCache(
    SimpleNamespace(num_layers=1, num_kv_heads=1, head_dim=2), torch.float32, torch.device("cpu"), 200, BLOCK_SIZE
)
NAMES = "abcdefgh"

steps_of_names = st.lists(
    st.tuples(st.lists(st.sampled_from(NAMES), unique=True, min_size=1, max_size=ROWS), st.sampled_from(NAMES + " -")),
    min_size=1,
    max_size=20,
)


def grow(one: Sequence, tokens: int, random: Random) -> Span:
    """Some tokens more, in blocks anywhere."""
    start = len(one.token_ids)
    end = min(start + tokens, BLOCKS * BLOCK_SIZE)
    if start == end:
        start -= 1
    one.token_ids += [random.randrange(100) for _ in range(end - start)][: end - len(one.token_ids)]
    while len(one.block_ids) * BLOCK_SIZE < end:
        one.block_ids.append(random.randrange(200))
    return Span(one, start, end)


def slots_of(span: Span) -> list[int]:
    blocks = span.sequence.block_ids
    return [blocks[at // BLOCK_SIZE] * BLOCK_SIZE + at % BLOCK_SIZE for at in range(span.start, span.end)]


@given(steps_of_names, st.randoms(use_true_random=False))
def test_every_row_says_where_its_sequence_lies(steps, random):
    """Whoever joins, leaves, changes its row, grows or is preempted: tables, slots, tokens, positions, tiles are right."""
    last_draw = LastDraw(ROWS, CACHE.device)
    inputs = StepInputs(
        CACHE, last_draw, max_tokens=TOKENS, max_sequences=ROWS, max_blocks=BLOCKS, queries_per_tile=TILE
    )
    sequences = {name: Sequence(name, SamplingParams(max_tokens=1), 0, 0, []) for name in NAMES}
    for running, preempted in steps:
        if preempted in sequences:
            one = sequences[preempted]
            one.block_ids = [random.randrange(200) for _ in one.block_ids]
        is_mixed = random.random() < 0.5
        spans = [grow(sequences[name], random.randrange(1, 9) if is_mixed else 1, random) for name in running]
        if is_mixed:
            inputs.write_mixed(spans, TOKENS)
            check_sequences(inputs, spans)
            padded = TOKENS
        else:
            inputs.write_decode(spans, ROWS)
            padded = ROWS
        check_tokens(inputs, spans, padded)
        for row, span in enumerate(spans):
            blocks = span.sequence.block_ids
            assert inputs.block_tables[row, : len(blocks)].tolist() == blocks


def check_tokens(inputs: StepInputs, spans: list[Span], padded: int) -> None:
    token_ids, positions, slots = (column.tolist() for column in inputs.tokens(padded))
    count = sum(span.end - span.start for span in spans)
    assert token_ids[:count] == [
        token_id for span in spans for token_id in span.sequence.token_ids[span.start : span.end]
    ]
    assert positions[:count] == [position for span in spans for position in range(span.start, span.end)]
    assert slots[:count] == [slot for span in spans for slot in slots_of(span)]
    assert set(positions[count:]) <= {-1}
    assert set(slots[count:]) <= {CACHE.scratch_slot}


def check_sequences(inputs: StepInputs, spans: list[Span]) -> None:
    starts = inputs.query_starts.tolist()
    assert inputs.lengths[: len(spans)].tolist() == [span.end for span in spans]
    queries: list[tuple[int, int]] = []
    for row, first in inputs.tiles.tolist():
        tokens = starts[row + 1] - starts[row]
        queries += [(row, query) for query in range(first, min(first + TILE, tokens))]
        assert tokens or inputs.lengths[row] == 0
    wanted = [(row, query) for row, span in enumerate(spans) for query in range(span.end - span.start)]
    assert sorted(queries) == wanted
    samplers = [(row, span) for row, span in enumerate(spans) if span.samples]
    assert inputs.last_rows[: len(samplers)].tolist() == [starts[row + 1] - 1 for row, _ in samplers]


@given(st.integers(1, 5000), st.integers(1, 600), st.data())
def test_every_step_within_the_limits_has_a_shape_that_holds_it(max_tokens, max_sequences, data):
    """Shapes are as few as there are graphs to capture, and none is smaller than its step."""
    limits = Limits(max_tokens, max_sequences, 100)
    shapes = list(all_shapes(limits))
    assert len(shapes) == len(set(shapes))
    sequences = data.draw(st.integers(1, min(max_sequences, max_tokens, 40)))
    longest = max_tokens // sequences
    tokens = data.draw(st.lists(st.integers(1, longest), min_size=sequences, max_size=sequences))
    shape = shape_of(tokens, decodes=data.draw(st.booleans()))
    assert shape in shapes
    assert sum(tokens) <= shape.tokens <= limits.padded_tokens


def test_only_rows_that_draw_a_token_decode():
    """The last token of a prompt's piece is one token, too, but not a decode step."""
    assert shape_of([1, 1], decodes=True).decodes
    assert not shape_of([1], decodes=False).decodes
    assert not shape_of([1, 2], decodes=True).decodes
