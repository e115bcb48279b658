"""The scheduler: who runs when, and whose blocks are whose."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.blocks import BlockAllocator
from app.engine.scheduler import NeverFits, Scheduler
from app.engine.sequence import Sequence, new_sequence
from app.messages import SamplingParams, Submit

BLOCK_SIZE = 4


def make(num_blocks: int = 16, *, max_num_seqs: int = 4, max_num_batched_tokens: int = 16):
    blocks = BlockAllocator(num_blocks)
    scheduler = Scheduler(
        blocks,
        block_size_tokens=BLOCK_SIZE,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
    )
    return scheduler, blocks


def sequence(name: str, prompt_tokens: int, max_tokens: int = 4) -> Sequence:
    return new_sequence(Submit(name, tuple(range(prompt_tokens)), SamplingParams(max_tokens=max_tokens)))


def step(scheduler: Scheduler) -> list[tuple[str, int, int]]:
    """One step of a model that always draws token 1: what was computed, as (name, start, end)."""
    spans = scheduler.schedule()
    scheduler.advance(spans)
    computed = [(span.sequence.request_id, span.start, span.end) for span in spans]
    for span in [span for span in spans if span.samples]:
        if span.sequence.append(1) is not None:
            scheduler.finish(span.sequence)
    return computed


def test_running_sequences_go_first_and_waiting_ones_fill_the_step():
    """A decode takes one token of the budget; the next prompts get the rest of it, in order of arrival."""
    scheduler, _ = make(max_num_batched_tokens=8)
    scheduler.submit(sequence("a", 5))
    assert step(scheduler) == [("a", 0, 5)]
    scheduler.submit(sequence("b", 6))
    scheduler.submit(sequence("c", 6))
    assert step(scheduler) == [("a", 5, 6), ("b", 0, 6), ("c", 0, 1)]
    assert step(scheduler) == [("a", 6, 7), ("b", 6, 7), ("c", 1, 6)]


def test_a_long_prompt_is_computed_in_pieces():
    """A prompt beyond the budget takes several steps and samples only after the last."""
    scheduler, _ = make(max_num_batched_tokens=8)
    scheduler.submit(sequence("a", 20, max_tokens=1))
    assert [step(scheduler) for _ in range(3)] == [[("a", 0, 8)], [("a", 8, 16)], [("a", 16, 20)]]
    assert not scheduler.has_work


def test_no_more_than_max_num_seqs_run():
    """A further sequence waits until one ends."""
    scheduler, _ = make(max_num_seqs=1)
    scheduler.submit(sequence("a", 2, max_tokens=1))
    scheduler.submit(sequence("b", 2, max_tokens=1))
    assert [step(scheduler), step(scheduler)] == [[("a", 0, 2)], [("b", 0, 2)]]


def test_the_youngest_gives_its_blocks_to_the_oldest():
    """When blocks run out the youngest starts over, with its generated tokens as part of its prompt."""
    scheduler, blocks = make(num_blocks=5)
    scheduler.submit(sequence("old", 8, max_tokens=12))
    scheduler.submit(sequence("new", 4, max_tokens=12))
    steps = [step(scheduler) for _ in range(6)]
    assert steps[0] == [("old", 0, 8), ("new", 0, 4)]
    assert steps[1] == [("old", 8, 9), ("new", 4, 5)]
    assert steps[5] == [("old", 12, 13)]
    while scheduler.has_work:
        steps.append(step(scheduler))
    restarts = [computed for computed in steps if ("new", 0, 9) in computed]
    assert len(restarts) == 1
    assert blocks.num_free == 5


def test_a_newcomer_leaves_each_running_sequence_a_block_to_grow_into():
    """Admitted into the last free blocks it would be preempted, and its prompt computed twice."""
    scheduler, _ = make(num_blocks=4)
    scheduler.submit(sequence("old", 7, max_tokens=3))
    scheduler.submit(sequence("new", 8, max_tokens=1))
    assert [step(scheduler) for _ in range(4)] == [
        [("old", 0, 7)],
        [("old", 7, 8)],
        [("old", 8, 9)],
        [("new", 0, 8)],
    ]


def test_a_sequence_that_can_never_fit_is_refused():
    """A prompt and answer beyond the whole cache is refused at once; the exact size is not."""
    scheduler, _ = make(num_blocks=4)
    with pytest.raises(NeverFits, match="holds 16"):
        scheduler.submit(sequence("a", 13, max_tokens=4))
    scheduler.submit(sequence("b", 12, max_tokens=4))
    while scheduler.has_work:
        step(scheduler)


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 40), st.integers(1, 20)),
        st.tuples(st.just("abort"), st.integers(0, 15)),
        st.just(("step",)),
    ),
    max_size=60,
)


@given(
    operations=OPERATIONS,
    num_blocks=st.integers(1, 24),
    max_num_seqs=st.integers(1, 6),
    max_num_batched_tokens=st.integers(1, 40),
)
def test_no_block_is_ever_lost_or_shared(operations, num_blocks, max_num_seqs, max_num_batched_tokens):
    """After any submits, aborts, steps and preemptions each block has one owner, and every sequence ends."""
    scheduler, blocks = make(num_blocks, max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens)
    sequences: list[Sequence] = []

    def checked_step() -> None:
        computed = step(scheduler)
        assert computed
        assert sum(end - start for _, start, end in computed) <= max_num_batched_tokens
        assert len(computed) <= max_num_seqs

    def check() -> None:
        owned = [block for one in sequences for block in one.block_ids]
        assert len(owned) == len(set(owned))
        assert len(owned) + blocks.num_free == num_blocks
        assert all(len(one.block_ids) * BLOCK_SIZE >= one.computed_tokens for one in sequences)

    for kind, *values in operations:
        if kind == "submit":
            one = sequence(str(len(sequences)), *values)
            if sum(values) <= num_blocks * BLOCK_SIZE:
                scheduler.submit(one)
                sequences.append(one)
            else:
                with pytest.raises(NeverFits):
                    scheduler.submit(one)
        elif kind == "abort":
            scheduler.abort(str(values[0]))
        elif scheduler.has_work:
            checked_step()
        check()
    for _ in range(10_000):
        if not scheduler.has_work:
            break
        checked_step()
        check()
    assert not scheduler.has_work
    assert blocks.num_free == num_blocks
