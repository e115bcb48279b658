"""Which tokens of which sequences the next step computes.

Continuous batching: every running sequence goes on first, oldest first, then waiting ones are admitted in
order of arrival while tokens, sequences and blocks allow. Long prompts are computed in pieces, and what another
sequence has computed already is shared. When blocks run out the youngest sequence gives all of its up and starts
again later, from its prompt and what it has generated. The last token of a sequence may be drawn but unknown: what
follows it is scheduled all the same. Pure; knows no tensor, and of messages only what tells how full it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from app.engine.blocks import BlockAllocator
from app.engine.prefix_cache import PrefixCache
from app.engine.sequence import Sequence
from app.messages import EngineStats
from streaming.clock import boottime_s


class NeverFits(Exception):
    """The sequence would not fit even if it had the whole cache."""


@dataclass(frozen=True)
class Span:
    """Tokens `[start, end)` of a sequence, to be computed in one step."""

    sequence: Sequence
    start: int
    end: int

    @property
    def samples(self) -> bool:
        """Whether the step computes the sequence's last token, after which a new one is drawn; until `advance`."""
        return self.end == len(self.sequence.token_ids)


class Scheduler:
    """The queue, the running set and their blocks.

    Sequences run in order of arrival and leave the running set from its young end, so every running sequence
    is older than every waiting one, and only the youngest can be in the middle of its prompt.

    Args:
        blocks: The cache's blocks; the scheduler is their only user.
        block_size_tokens: Tokens in a block.
        max_num_seqs: How many sequences run at once.
        max_num_batched_tokens: How many tokens one step computes.
        prefix_caching: Whether equal beginnings share their blocks.
    """

    def __init__(
        self,
        blocks: BlockAllocator,
        *,
        block_size_tokens: int,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        prefix_caching: bool,
    ):
        self._blocks = blocks
        self._prefixes = PrefixCache(blocks, block_size_tokens) if prefix_caching else None
        self._block_size_tokens = block_size_tokens
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._preemptions = 0

    def stats(self) -> EngineStats:
        """How full it is at this moment, without the device's part."""
        num_blocks = self._blocks.num_blocks
        return EngineStats(
            running=len(self._running),
            waiting=len(self._waiting),
            used_blocks=num_blocks - self._blocks.num_free,
            num_blocks=num_blocks,
            preemptions=self._preemptions,
        )

    @property
    def has_work(self) -> bool:
        """Whether any sequence has not ended."""
        return bool(self._running or self._waiting)

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence.

        Raises:
            NeverFits: Its prompt and `max_tokens` exceed the whole cache.
        """
        capacity_tokens = self._blocks.num_blocks * self._block_size_tokens
        want_tokens = sequence.prompt_tokens + sequence.sampling.max_tokens
        if want_tokens > capacity_tokens:
            raise NeverFits(
                f"prompt and max_tokens are {want_tokens} tokens but the KV cache holds {capacity_tokens}: "
                "ask for fewer"
            )
        self._waiting.append(sequence)

    def abort(self, request_id: str) -> None:
        """Drop a sequence, wherever it is; an unknown id is ignored (it may just have finished)."""
        for sequence in (*self._running, *self._waiting):
            if sequence.request_id == request_id:
                self.finish(sequence)

    def finish(self, sequence: Sequence) -> None:
        """Drop a sequence and free its blocks."""
        (self._running if sequence in self._running else self._waiting).remove(sequence)
        sequence.has_ended = True
        self._release(sequence)
        if self._prefixes is not None:
            self._prefixes.drop(sequence)

    def discard(self, sequence: Sequence) -> None:
        """Drop a sequence whose keys and values cannot be trusted: nobody gets them."""
        if self._prefixes is not None:
            self._prefixes.forget_content(sequence)
        self.finish(sequence)

    def schedule(self) -> list[Span]:
        """The next step's spans, blocks for them in place; none where there is nothing, or nothing before a token was read."""
        spans: list[Span] = []
        budget_tokens = self._max_num_batched_tokens
        for sequence in self._ready():
            tokens = min(sequence.pending_tokens, budget_tokens)
            spans.append(Span(sequence, sequence.computed_tokens, sequence.computed_tokens + tokens))
            budget_tokens -= tokens
            if not budget_tokens:
                break
        return spans

    def advance(self, spans: list[Span]) -> None:
        """The step was launched: whatever is launched from now on finds its keys and values, and its unknown tokens.

        Of a sequence that has ended since `schedule` nothing is kept.
        """
        for span in spans:
            if span.sequence.has_ended:
                continue
            span.sequence.computed_tokens = span.end
            if span.samples:
                span.sequence.expect_token()

    def publish(self, spans: list[Span]) -> None:
        """The step was computed without an error: others may share the blocks that it has filled.

        To be called before a later step's `advance`.
        """
        if self._prefixes is None:
            return
        for span in spans:
            # A sequence that has ended or was preempted since has given them up: they may be another's.
            if span.sequence.computed_tokens >= span.end:
                self._prefixes.publish(span.sequence, span.start, span.end)

    def _ready(self) -> Iterator[Sequence]:
        """What can be computed, oldest first, its blocks in place: running sequences, then waiting ones."""
        index = 0
        while index < len(self._running):
            sequence = self._running[index]
            if sequence.awaits_its_last_token:
                index += 1
            elif self._missing_blocks(sequence) <= self._blocks.num_free:
                index += 1
                yield self._grow(sequence)
            elif any(one.awaits_its_last_token for one in self._running):
                return  # its blocks are free as soon as that token was read: nobody need start over for them
            else:
                self._preempt_youngest()  # perhaps this very one
        while admitted := self._admit():
            yield admitted

    def _admit(self) -> Sequence | None:
        if not self._waiting or len(self._running) == self._max_num_seqs:
            return None
        sequence = self._waiting[0]
        shared = self._shared_blocks(sequence)
        idle = sum(map(self._blocks.is_free, shared))
        # One block of headroom for each running sequence, or the newcomer would soon be preempted again.
        wanted = self._missing_blocks(sequence) - len(shared) + len(self._running)
        if wanted > self._blocks.num_free - idle:
            return None
        self._running.append(self._waiting.popleft())
        for block in shared:
            self._blocks.share(block)
        sequence.block_ids = shared
        sequence.computed_tokens = len(shared) * self._block_size_tokens
        if sequence.cached_tokens is None:  # one that was preempted may find its own
            sequence.cached_tokens = sequence.computed_tokens
            sequence.scheduled_s = boottime_s()
        return self._grow(sequence)

    def _shared_blocks(self, sequence: Sequence) -> list[int]:
        return [] if self._prefixes is None else self._prefixes.match(sequence)

    def _grow(self, sequence: Sequence) -> Sequence:
        last = sequence.block_ids[-1] if sequence.block_ids else None
        sequence.block_ids += self._blocks.allocate(self._missing_blocks(sequence), after=last)
        return sequence

    def _preempt_youngest(self) -> None:
        sequence = self._running.pop()
        self._preemptions += 1
        self._release(sequence)
        self._waiting.appendleft(sequence)

    def _release(self, sequence: Sequence) -> None:
        # A step in flight may still write into these blocks. Who gets them next writes and reads in a later step, which
        # the device begins after that one; and nobody finds them by name, as a block with tokens to come has none.
        self._blocks.free(sequence.block_ids)
        sequence.block_ids = []
        sequence.computed_tokens = 0

    def _missing_blocks(self, sequence: Sequence) -> int:
        """Blocks short of holding every token that the sequence has now."""
        return -(-len(sequence.token_ids) // self._block_size_tokens) - len(sequence.block_ids)
