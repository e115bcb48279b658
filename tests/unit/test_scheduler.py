"""The scheduler: who runs when, and whose blocks are whose."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.blocks import BlockAllocator
from app.engine.prefix_cache import PrefixCache
from app.engine.scheduler import NeverFits, Scheduler, Span
from app.engine.sequence import UNKNOWN_TOKEN, Sequence, new_sequence
from app.messages import SamplingParams, Submit

BLOCK_SIZE = 4


def make(
    num_blocks: int = 16, *, max_num_seqs: int = 4, max_num_batched_tokens: int = 16, prefix_caching: bool = False
):
    blocks = BlockAllocator(num_blocks)
    scheduler = Scheduler(
        blocks,
        block_size_tokens=BLOCK_SIZE,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        prefix_caching=prefix_caching,
    )
    return scheduler, blocks


def sequence(name: str, prompt_tokens: int, max_tokens: int = 4) -> Sequence:
    return of_tokens(name, range(prompt_tokens), max_tokens)


def of_tokens(name: str, tokens: Iterable[int], max_tokens: int = 4) -> Sequence:
    return new_sequence(Submit(name, tuple(tokens), SamplingParams(max_tokens=max_tokens)))


def step(scheduler: Scheduler) -> list[tuple[str, int, int]]:
    """One step of a model that always draws token 1: what was computed, as (name, start, end)."""
    spans = scheduler.schedule()
    read(scheduler, spans, launch(scheduler, spans))
    return [(span.sequence.request_id, span.start, span.end) for span in spans]


def launch(scheduler: Scheduler, spans: list[Span]) -> list[Sequence]:
    """Which sequences the step of these spans draws a token for."""
    sampled = [span.sequence for span in spans if span.samples]
    scheduler.advance(spans)
    return sampled


def read(scheduler: Scheduler, spans: list[Span], sampled: list[Sequence], token_id: int = 1) -> None:
    """The step was computed, and has drawn this token for each of `sampled`."""
    scheduler.publish(spans)
    for one in sampled:
        if one.learn_token(token_id) is not None:
            scheduler.finish(one)


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


def test_an_equal_beginning_is_computed_once():
    """A second sequence starts after the full blocks that it shares, also when the first one has ended."""
    scheduler, blocks = make(prefix_caching=True)
    for name in ("first", "second"):
        scheduler.submit(of_tokens(name, [*range(10), ord(name[0])], max_tokens=1))
        computed = step(scheduler)
        assert not scheduler.has_work
        assert computed == [(name, 0 if name == "first" else 8, 11)]
    assert blocks.num_free == 16


def test_two_that_run_share_the_same_blocks():
    """Shared while both run; each has its own where they differ."""
    scheduler, blocks = make(prefix_caching=True)
    one, other = of_tokens("one", [*range(8), 1]), of_tokens("other", [*range(8), 2])
    scheduler.submit(one)
    step(scheduler)
    scheduler.submit(other)
    step(scheduler)
    assert one.block_ids[:2] == other.block_ids[:2]
    assert one.block_ids[2] != other.block_ids[2]
    assert blocks.num_free == 16 - 4


def test_a_whole_prompt_that_is_known_still_computes_its_last_token():
    """There must be something to draw from."""
    scheduler, _ = make(prefix_caching=True)
    for computed in ([("a", 0, 8)], [("a", 4, 8)]):
        scheduler.submit(sequence("a", 8, max_tokens=1))
        assert step(scheduler) == computed


def test_what_cannot_be_trusted_is_not_shared():
    """After a sequence with broken logits the next one computes everything."""
    scheduler, _ = make(prefix_caching=True)
    broken = sequence("broken", 12)
    scheduler.submit(broken)
    step(scheduler)
    scheduler.discard(broken)
    scheduler.submit(sequence("next", 12))
    assert step(scheduler) == [("next", 0, 12)]


def test_what_a_preempted_sequence_finds_of_its_own_is_not_counted_as_cached():
    """cached_tokens are those of the first admission, whatever is shared later."""
    scheduler, _ = make(prefix_caching=True)
    first, second = sequence("first", 9), sequence("second", 9)
    for one in (first, second):
        assert one.cached_tokens is None
        scheduler.submit(one)
        step(scheduler)
    assert (first.cached_tokens, second.cached_tokens) == (0, 8)
    scheduler.finish(second)
    scheduler._preempt_youngest()
    assert step(scheduler) == [("first", 8, 11)]
    assert first.cached_tokens == 0


def test_the_longest_unused_content_is_given_up_first():
    """Of two idle prefixes the older one makes room, its end before its beginning."""
    scheduler, _ = make(num_blocks=6, prefix_caching=True)
    for name, token in (("old", 1), ("new", 2)):
        scheduler.submit(of_tokens(name, [token] * 9, max_tokens=1))
        step(scheduler)
    scheduler.submit(of_tokens("other", [3] * 9, max_tokens=1))
    step(scheduler)
    scheduler.submit(of_tokens("new", [2] * 9, max_tokens=1))
    assert step(scheduler) == [("new", 8, 9)]
    scheduler.submit(of_tokens("old", [1] * 9, max_tokens=1))
    assert step(scheduler) == [("old", 4, 9)]


# A step is launched before the one before it was read


def test_what_follows_an_unknown_token_is_scheduled():
    """A token that was drawn but not read has its place, its block and its step."""
    scheduler, blocks = make()
    one = sequence("a", 4)
    scheduler.submit(one)
    launch(scheduler, scheduler.schedule())
    assert one.token_ids[4:] == [UNKNOWN_TOKEN]
    [span] = scheduler.schedule()
    assert (span.start, span.end, span.samples) == (4, 5, True)
    assert blocks.num_free == 16 - 2


def test_nothing_is_computed_behind_the_last_token():
    """A sequence that ends with the token in flight whatever it is keeps its blocks and its place, and gets no step."""
    scheduler, blocks = make(num_blocks=3, max_num_seqs=1)
    scheduler.submit(sequence("a", 8, max_tokens=1))
    scheduler.submit(sequence("b", 2, max_tokens=1))
    spans = scheduler.schedule()
    sampled = launch(scheduler, spans)
    assert scheduler.has_work
    assert scheduler.schedule() == []
    assert blocks.num_free == 1
    read(scheduler, spans, sampled)
    assert blocks.num_free == 3
    assert step(scheduler) == [("b", 0, 2)]


def test_nobody_starts_over_for_blocks_that_are_about_to_be_free():
    """Where blocks run out beside a sequence that awaits its last token the others wait for it."""
    scheduler, _ = make(num_blocks=3)
    scheduler.submit(sequence("ending", 4, max_tokens=2))
    scheduler.submit(sequence("other", 3, max_tokens=9))
    assert step(scheduler) == [("ending", 0, 4), ("other", 0, 3)]
    spans = scheduler.schedule()
    sampled = launch(scheduler, spans)
    assert [one.request_id for one in sampled] == ["ending", "other"]
    assert scheduler.schedule() == []
    read(scheduler, spans, sampled)
    assert step(scheduler) == [("other", 4, 5)]


def test_a_sequence_that_starts_over_keeps_its_unknown_token():
    """It is computed again up to that token, with whatever it was."""
    scheduler, _ = make(prefix_caching=True)
    one = sequence("a", 9)
    scheduler.submit(one)
    spans = scheduler.schedule()
    sampled = launch(scheduler, spans)
    scheduler._preempt_youngest()
    [span] = scheduler.schedule()
    assert (span.start, span.end, span.samples) == (0, 10, True)
    read(scheduler, spans, sampled, token_id=7)
    assert one.token_ids[9:] == [7]


def test_a_block_has_no_name_before_its_step_was_read():
    """Nor has one of a sequence that has given it up meanwhile: it may be another's."""
    scheduler, blocks = make(prefix_caching=True)
    one, other = sequence("one", 9), sequence("other", 9)
    scheduler.submit(one)
    spans = scheduler.schedule()
    sampled = launch(scheduler, spans)
    scheduler.submit(other)
    assert [span.start for span in scheduler.schedule()] == [9, 0]
    scheduler.abort("one")
    scheduler.publish(spans)
    assert sampled == [one]
    assert one.has_ended
    assert not blocks._blocks


def test_an_unknown_token_is_in_no_digest():
    """Two sequences whose last tokens are unknown have nothing in common, and nobody may be told that they do."""
    prefixes = PrefixCache(BlockAllocator(4), BLOCK_SIZE)
    one = sequence("a", 3)
    one.expect_token()
    assert prefixes.match(one) == []
    with pytest.raises(RuntimeError, match="not known yet"):
        prefixes.publish(one, 0, 4)


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


class Memory:
    """What a model would have in the cache: by slot, the tokens up to the one whose keys and values lie there."""

    def __init__(self):
        self.slots: dict[int, tuple[int, ...]] = {}

    def compute(self, spans):
        """Everything before a span must be there, whoever computed it."""
        for span in spans:
            tokens, blocks = span.sequence.token_ids, span.sequence.block_ids
            for position in range(span.end):
                slot = blocks[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
                if position < span.start:
                    assert self.slots[slot] == tuple(tokens[: position + 1])
                else:
                    self.slots[slot] = tuple(tokens[: position + 1])


PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=40)


@given(
    operations=st.lists(
        st.one_of(
            st.tuples(st.just("submit"), PROMPTS, st.integers(1, 12)),
            st.tuples(st.sampled_from(["abort", "discard"]), st.integers(0, 15)),
            st.just(("step",)),
        ),
        max_size=60,
    ),
    num_blocks=st.integers(1, 24),
    max_num_batched_tokens=st.integers(1, 40),
    drawn=st.randoms(use_true_random=False),
)
def test_a_shared_block_always_holds_the_tokens_of_everybody_who_has_it(
    operations, num_blocks, max_num_batched_tokens, drawn
):
    """After any submits, aborts, ends, preemptions and shares nobody reads another one's keys, and no block is lost."""
    scheduler, blocks = make(num_blocks, max_num_batched_tokens=max_num_batched_tokens, prefix_caching=True)
    memory = Memory()
    sequences: list[Sequence] = []

    def one_step() -> None:
        spans = scheduler.schedule()
        memory.compute(spans)
        sampled = launch(scheduler, spans)
        scheduler.publish(spans)
        for one in sampled:
            if one.learn_token(drawn.randint(0, 1)) is not None:
                scheduler.finish(one)
        assert len({block for one in sequences for block in one.block_ids}) + blocks.num_free == num_blocks

    for kind, *values in operations:
        if kind == "submit" and len(values[0]) + values[1] <= num_blocks * BLOCK_SIZE:
            sequences.append(of_tokens(str(len(sequences)), *values))
            scheduler.submit(sequences[-1])
        elif kind == "abort":
            scheduler.abort(str(values[0]))
        elif kind == "discard" and values[0] < len(sequences) and sequences[values[0]].block_ids:
            scheduler.discard(sequences[values[0]])
        elif scheduler.has_work:
            one_step()
    for _ in range(10_000):
        if not scheduler.has_work:
            break
        one_step()
    assert not scheduler.has_work
    assert blocks.num_free == num_blocks
