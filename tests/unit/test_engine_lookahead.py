"""The engine's loop when it launches a step before it has read the one before: who hears what, and whose blocks are whose."""

from __future__ import annotations

import hashlib
import zlib
from array import array
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.blocks import BlockAllocator
from app.engine.loop import Loop
from app.engine.sampling.sampler import Drawn
from app.engine.scheduler import Scheduler
from app.engine.sequence import UNKNOWN_TOKEN
from app.messages import Abort, RequestFailed, SamplingParams, Submit, TokenLogprobs

BLOCK_SIZE = 4
ENTRY = TokenLogprobs(0.0, 1, (), ())


class Boom(Exception):
    """What a step fails with."""


class Gone(Exception):
    """As a closed connection."""


def next_token(tokens: tuple[int, ...]) -> int:
    """The model: a token below 3 that depends on all before it."""
    return zlib.crc32(bytes(tokens)) % 3


class Device:
    """A model that knows each token as soon as it was launched, and notes what is done.

    By slot of the cache it has the tokens up to the one whose keys and values lie there, or None where a step that
    failed has left anything.

    Args:
        failures: By number of launch how it fails: "launch" or "collect", or "row": no token for its first sequence, if any is due.
    """

    def check(self):
        """It goes on after every failure."""

    def __init__(self, failures=()):
        self.done: list[str] = []
        self.slots: dict[int, tuple[int, ...] | None] = {}
        self._failures = dict(failures)
        self._drawn: dict = {}
        self._doomed: set = set()

    def launch(self, spans):
        """Compute the step, or what a failed one leaves."""
        number = sum(what.startswith("launch") for what in self.done)
        self.done.append(f"launch {number}")
        failure = self._failures.get(number)
        if failure == "row" and not spans[0].samples:
            failure = None
        self._doomed.update(span.sequence for span in (spans if failure != "row" else spans[:1]) if failure)
        before, self._drawn = self._drawn, {}
        for span in spans:
            tokens = self._tokens(span.sequence, before)
            self._compute(span, tokens)
            if span.samples:
                self._drawn[span.sequence] = next_token(tokens)
        if failure == "launch":
            raise Boom
        return Flight(self, number, spans, self._drawn, failure)

    def _tokens(self, sequence, drawn):
        *known, last = sequence.token_ids
        assert UNKNOWN_TOKEN not in known
        assert last != UNKNOWN_TOKEN or not sequence.must_be_read
        return (*known, drawn[sequence] if last == UNKNOWN_TOKEN else last)

    def _compute(self, span, tokens):
        sequence = span.sequence
        assert span.end < sequence.prompt_tokens + sequence.sampling.max_tokens
        assert not sequence.needs_prompt_logits or span.start <= len(sequence.prompt_logprobs)
        for position in range(span.end):
            slot = sequence.block_ids[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
            if position >= span.start:
                self.slots[slot] = None if sequence in self._doomed else tokens[: position + 1]
            elif sequence not in self._doomed:
                assert self.slots[slot] == tokens[: position + 1]


class Flight:
    """A step of `Device`."""

    def __init__(self, device, number, spans, drawn, failure):
        self._device, self._number, self._spans, self._drawn, self._failure = device, number, spans, drawn, failure

    def collect(self):
        """What was drawn, in the order of the spans."""
        self._device.done.append(f"collect {self._number}")
        if self._failure == "collect":
            raise Boom
        for span in self._spans:
            if span.sequence.needs_prompt_logits:
                count = min(span.end, span.sequence.prompt_tokens - 1)
                span.sequence.prompt_logprobs += [ENTRY] * (count - len(span.sequence.prompt_logprobs))
        failed = self._spans[0].sequence if self._failure == "row" else None
        return [None if sequence is failed else Drawn(token) for sequence, token in self._drawn.items()]


class Rig:
    """A loop around a `Device`, a server that says things between steps, and a look at the blocks before each of them."""

    def __init__(self, *arrivals, failures=(), lookahead=True, num_blocks=16, idle=lambda: False, **limits):
        self.device = Device(failures)
        self.heard = []
        self.blocked = 0
        self._arrivals = list(arrivals)
        self._blocks = BlockAllocator(num_blocks)
        limits = {"max_num_seqs": 4, "max_num_batched_tokens": 16, "prefix_caching": True} | limits
        self._scheduler = Scheduler(self._blocks, block_size_tokens=BLOCK_SIZE, **limits)
        self.loop = Loop(
            receive=self._receive,
            send=self.heard.append,
            scheduler=self._scheduler,
            runner=self.device,
            max_model_len_tokens=1000,
            vocab_size=3,
            lookahead=lambda: lookahead,
            idle=idle,
        )

    def run(self) -> Rig:
        """Until nothing is left to say and to do."""
        with pytest.raises(Gone):
            self.loop.run()
        assert self._blocks.num_free == self._blocks.num_blocks
        return self

    def told(self) -> dict[str, list[int | str]]:
        """By request its tokens, then why it ended."""
        told: dict[str, list[int | str]] = {}
        for message in self.heard:
            if isinstance(message, RequestFailed):
                told.setdefault(message.request_id, []).append("failed")
                continue
            for token in message.tokens:
                answer = told.setdefault(token.request_id, [])
                assert answer[-1:] not in (["failed"], ["stop"], ["length"])
                answer += [token.token_id] if token.finish_reason is None else [token.token_id, token.finish_reason]
        return told

    def _receive(self, block):
        self._check()
        if self._arrivals:
            return self._arrivals.pop(0)
        if block:
            self.blocked += 1
            raise Gone
        return []

    def _check(self):
        """Every owner has a block once, nothing is lost, and a name tells what the block really holds."""
        blocks, scheduler = self._blocks, self._scheduler
        owners = Counter(block for one in (*scheduler._running, *scheduler._waiting) for block in one.block_ids)
        assert owners == +blocks._owners
        assert len(owners) + blocks.num_free == blocks.num_blocks
        for digest, block in blocks._blocks.items():
            tokens = self.device.slots[block * BLOCK_SIZE + BLOCK_SIZE - 1]
            assert tokens is not None
            expected = b""
            for at in range(0, len(tokens), BLOCK_SIZE):
                content = array("q", tokens[at : at + BLOCK_SIZE]).tobytes()
                expected = hashlib.blake2b(expected + content, digest_size=16).digest()
            assert digest == expected


def submit(name: str, prompt: tuple[int, ...] = (1, 2, 0), **sampling) -> Submit:
    return Submit(name, prompt, SamplingParams(**{"max_tokens": 3} | sampling))


def answer(message: Submit) -> list[int | str]:
    """What the model says to a request, and why it ends."""
    tokens = message.prompt_token_ids
    told: list[int | str] = []
    while True:
        token = next_token(tokens)
        tokens = (*tokens, token)
        told.append(token)
        if token in message.sampling.stop_token_ids:
            return [*told, "stop"]
        if len(told) == message.sampling.max_tokens:
            return [*told, "length"]


def test_the_next_step_is_launched_before_the_last_is_read():
    """With lookahead the device has its next step before the host waits; without, each step is read at once."""
    one = submit("a")
    assert Rig([one]).run().device.done == ["launch 0", "launch 1", "collect 0", "launch 2", "collect 1", "collect 2"]
    assert Rig([one], lookahead=False).run().device.done == [
        "launch 0", "collect 0", "launch 1", "collect 1", "launch 2", "collect 2",
    ]  # fmt: skip


@pytest.mark.parametrize("sampling", [{"bad_words": ((1, 2),)}, {"prompt_logprobs": 0, "max_tokens": 1}])
def test_a_step_that_needs_what_the_host_has_not_read_waits(sampling):
    """Banned sequences and scores of the prompt depend on values: each step is read before the next is launched."""
    done = Rig([submit("a", (1, 2, 0) * 8, **sampling)]).run().device.done
    assert len(done) > 2
    assert [what.split()[0] for what in done] == ["launch", "collect"] * (len(done) // 2)


def test_what_is_drawn_behind_a_stop_token_is_dropped():
    """The row that was launched meanwhile is told to nobody, and its neighbour's is."""
    stop = submit("stop", stop_token_ids=(next_token((1, 2, 0)),), max_tokens=9)
    other = submit("other", (2, 2))
    rig = Rig([stop, other]).run()
    assert rig.told() == {"stop": answer(stop), "other": answer(other)}
    assert len(answer(stop)) == 2
    assert len(rig.device.done) == 6


def test_a_sequence_that_is_aborted_in_flight_is_never_heard_of_again():
    """Its step is read without waiting for the server, and nothing of it is told."""
    rig = Rig([submit("a")], [Abort("a")]).run()
    assert rig.heard == []
    assert rig.device.done == ["launch 0", "collect 0"]


def test_a_launch_that_fails_leaves_the_step_in_flight():
    """What was drawn before is told first; who ended with it has its answer, the others fail."""
    ends, goes_on = submit("ends", stop_token_ids=(next_token((1, 2, 0)),)), submit("goes on")
    rig = Rig([ends, goes_on], [], [submit("later")], failures={1: "launch"}).run()
    assert rig.told() == {"ends": answer(ends), "goes on": [answer(goes_on)[0], "failed"], "later": answer(goes_on)}


def test_a_step_that_fails_while_it_is_read_fails_its_sequences_once():
    """Who came with the step behind it goes on."""
    rig = Rig([submit("a")], [submit("b")], failures={0: "collect"}).run()
    assert rig.told() == {"a": ["failed"], "b": answer(submit("b"))}


def test_the_loop_waits_for_the_server_only_when_idle_work_is_done():
    """Work for idle times is done a piece at a time, and only where nothing has come and nothing is in flight."""
    left, done_when = [3], []

    def idle():
        done_when.append(list(rig.device.done))
        left[0] -= 1
        return left[0] > 0

    rig = Rig([submit("a", max_tokens=1)], [], [], [submit("b", max_tokens=1)], idle=idle)
    rig.run()
    assert rig.told() == {name: answer(submit(name, max_tokens=1)) for name in "ab"}
    first, both = ["launch 0", "collect 0"], ["launch 0", "collect 0", "launch 1", "collect 1"]
    assert done_when == [first, both, both]
    assert rig.blocked == 1


def arrivals_of(random: Random) -> list[list[Submit | Abort]]:
    """Requests with much in common, and aborts, some of them of requests that are gone or never were."""
    arrivals: list[list[Submit | Abort]] = []
    names = (str(number) for number in range(1000))
    for _ in range(random.randint(1, 12)):
        messages: list[Submit | Abort] = []
        for _ in range(random.choice((0, 0, 1, 1, 2, 3))):
            sampling: dict = {"max_tokens": random.randint(1, 12)}
            if random.random() < 0.4:
                sampling["stop_token_ids"] = (random.randint(0, 2),)
            if random.random() < 0.1:
                sampling |= random.choice(({"bad_words": ((0, 1),)}, {"prompt_logprobs": 0}))
            prompt = tuple(int(random.random() < 0.1) for _ in range(random.randint(1, 30)))
            messages.append(submit(next(names), prompt, **sampling))
        if random.random() < 0.2:
            messages.append(Abort(str(random.randint(0, 8))))
        arrivals.append(messages)
    return arrivals


@settings(max_examples=400, deadline=None)
@given(random=st.randoms(use_true_random=True), lookahead=st.booleans(), prefix_caching=st.booleans())
def test_whatever_happens_everybody_gets_the_models_tokens_and_no_block_is_lost(random, lookahead, prefix_caching):
    """Through aborts, stops, preemptions, shares and failures nobody reads another one's keys or hears its tokens.

    Who is neither aborted nor in a step that fails gets its whole answer, once.
    """
    arrivals = arrivals_of(random)
    num_blocks = random.randint(3, 16)
    failure_rate = random.choice((0, 0, 0.1, 0.3))
    kinds = ("launch", "collect", "row")
    failures = {number: random.choice(kinds) for number in range(200) if random.random() < failure_rate}
    rig = Rig(
        *arrivals,
        failures=failures,
        lookahead=lookahead,
        num_blocks=num_blocks,
        max_num_seqs=random.randint(1, 6),
        max_num_batched_tokens=random.randint(1, 40),
        prefix_caching=prefix_caching,
    ).run()
    told = rig.told()
    messages = [message for messages in arrivals for message in messages]
    aborted = {message.request_id for message in messages if isinstance(message, Abort)}
    for each in messages:
        if isinstance(each, Abort):
            continue
        got, expected = told.get(each.request_id, []), answer(each)
        if got[-1:] == ["failed"]:
            fits = len(each.prompt_token_ids) + each.sampling.max_tokens <= num_blocks * BLOCK_SIZE
            assert failures or not fits
            assert got[:-1] == expected[: len(got) - 1]
        else:
            assert got == (expected[: len(got)] if each.request_id in aborted else expected)
