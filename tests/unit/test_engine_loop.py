"""The engine's loop around a model of a few lines: what it says to whom, and what it survives."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from app.engine import loop as loop_module
from app.engine.blocks import BlockAllocator
from app.engine.loop import Loop
from app.engine.sampling.sampler import Drawn
from app.engine.scheduler import Scheduler
from app.messages import Abort, RequestFailed, SamplingParams, StepOutput, Submit, TokenLogprobs, WeightsLanded


class Server:
    """The server's end of a loop: what it says, step by step, and what it hears; then it is gone."""

    class Gone(Exception):
        """As a closed connection."""

    def __init__(self, *says):
        self._says = list(says)
        self.heard = []

    def receive(self, block):
        """What has arrived by the next step."""
        if self._says:
            return self._says.pop(0)
        if block:
            raise Server.Gone
        return []


class Landed:
    """A step that was computed while it was launched."""

    def __init__(self, drawn):
        self.collect = lambda: drawn


def serve(server: Server, run, *, num_blocks: int = 16, lookahead: bool = False, check=lambda: None) -> list:
    """Run a loop whose model is `run` until it is idle and the server is gone."""
    blocks = BlockAllocator(num_blocks)
    scheduler = Scheduler(blocks, block_size_tokens=4, max_num_seqs=4, max_num_batched_tokens=16, prefix_caching=True)
    runner = SimpleNamespace(launch=lambda spans: Landed(run(spans)), check=check)
    loop = Loop(
        receive=server.receive,
        send=server.heard.append,
        scheduler=scheduler,
        runner=runner,
        max_model_len_tokens=64,
        vocab_size=100,
        lookahead=lambda: lookahead,
    )
    with pytest.raises(Server.Gone):
        loop.run()
    assert blocks.num_free == num_blocks
    return server.heard


def submit(name: str, prompt: tuple[int, ...] = (1, 2, 3), **sampling) -> Submit:
    return Submit(name, prompt, SamplingParams(**{"max_tokens": 2} | sampling))


def ones(spans):
    """A model that always draws token 1."""
    return [Drawn(1) for span in spans if span.samples]


@pytest.mark.parametrize("lookahead", [False, True])
def test_one_message_per_step_tells_every_sequence_its_token(lookahead):
    """The tokens of a step travel together; the last one carries why the sequence ended."""
    heard = serve(Server([submit("a"), submit("b", max_tokens=9, stop_token_ids=(1,))]), ones, lookahead=lookahead)
    assert [[(token.request_id, token.token_id, token.finish_reason) for token in m.tokens] for m in heard] == [
        [("a", 1, None), ("b", 1, "stop")],
        [("a", 1, "length")],
    ]


@pytest.mark.parametrize("lookahead", [False, True])
def test_every_step_of_a_long_prompt_is_heard(lookahead):
    """A step that draws no token says so: who watches the engine cannot tell patience from a hang otherwise."""
    heard = serve(Server([submit("long", (1,) * 60, max_tokens=1)]), ones, lookahead=lookahead)
    assert [len(message.tokens) for message in heard] == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (submit("bad", ()), "empty"),
        (submit("bad", (1, 100)), "vocabulary"),
        (submit("bad", (-1,)), "vocabulary"),
        (submit("bad", max_tokens=62), "model takes 64"),
        (submit("bad", (1,) * 30, max_tokens=11), "cache holds 40"),
        (submit("bad", logit_bias=((100, 1.0),)), "logit_bias: token id 100"),
        (submit("bad", allowed_token_ids=(100,)), "allowed_token_ids"),
        (submit("bad", temperature=float("nan")), "temperature"),
    ],
)
def test_a_request_that_cannot_run_is_refused_and_the_others_go_on(bad, complaint):
    """What would fail inside a step never gets into one."""
    heard = serve(Server([bad, submit("good", max_tokens=1)]), ones, num_blocks=10)
    assert isinstance(heard[0], RequestFailed)
    assert heard[0].request_id == "bad"
    assert complaint in heard[0].message
    assert heard[1].tokens[0].request_id == "good"


def test_a_request_that_nobody_can_set_up_fails_alone(monkeypatch, caplog):
    """An error that nobody foresaw in taking one request fails it, and the loop lives."""

    def poisoned(sampling, vocab_size):
        if sampling.top_k == 13:
            raise ZeroDivisionError("secret")

    monkeypatch.setattr(loop_module, "check_sampling", poisoned)
    heard = serve(Server([submit("bad", top_k=13), submit("good", max_tokens=1)]), ones)
    assert heard[0] == RequestFailed("bad", "the engine failed on this request: ZeroDivisionError")
    assert heard[1].tokens[0].request_id == "good"
    assert "secret" in caplog.text


@pytest.mark.parametrize("lookahead", [False, True])
@pytest.mark.parametrize("error", [RuntimeError("boom"), torch.OutOfMemoryError("no room")])
def test_a_step_that_fails_ends_its_sequences_and_the_loop_lives(error, lookahead, caplog):
    """An exception inside a step, memory that runs out included, fails the requests in it; later ones are served."""

    def run(spans):
        if spans[0].sequence.request_id == "a":
            raise error
        return ones(spans)

    heard = serve(Server([submit("a"), submit("b")], [submit("c", max_tokens=1)]), run, lookahead=lookahead)
    assert [type(message) for message in heard] == [RequestFailed, RequestFailed, StepOutput]
    assert [message.request_id for message in heard[:2]] == ["a", "b"]
    assert type(error).__name__ in heard[0].message
    assert "a step of 2 sequences failed" in caplog.text


def test_an_engine_that_can_compute_nothing_any_more_ends():
    """After an error that no later step would survive, its sequences are told and the process makes room for another."""
    server = Server([submit("a")], [submit("b")])

    def run(spans):
        raise RuntimeError("an illegal memory access was encountered")

    def check():
        raise RuntimeError("an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        serve(server, run, check=check)
    assert [message.request_id for message in server.heard] == ["a"]


@pytest.mark.parametrize("lookahead", [False, True])
def test_a_row_without_finite_logits_fails_alone(lookahead):
    """The sequence whose logits are not finite ends with an error; its neighbour gets its token."""

    def run(spans):
        return [None if span.sequence.request_id == "a" else Drawn(1) for span in spans]

    heard = serve(Server([submit("a"), submit("b", max_tokens=1)]), run, lookahead=lookahead)
    assert [type(message) for message in heard] == [RequestFailed, StepOutput]
    assert (heard[0].request_id, heard[1].tokens[0].request_id) == ("a", "b")


@pytest.mark.parametrize("lookahead", [False, True])
def test_logprobs_travel_with_their_token_and_the_prompts_with_the_first(lookahead):
    """A token's logprobs are in its output; the prompt's come once, and only to who asked."""
    entry = TokenLogprobs(-0.5, 1, (1,), (-0.5,))

    def run(spans):
        for span in spans:
            if span.sequence.needs_prompt_logits:
                span.sequence.prompt_logprobs += [entry] * (span.sequence.prompt_tokens - 1)
        return [Drawn(1, entry) for span in spans]

    submits = [submit("a", logprobs=1, prompt_logprobs=1), submit("b", logprobs=1)]
    heard = serve(Server(submits), run, lookahead=lookahead)
    assert [[token.logprobs for token in message.tokens] for message in heard] == [[entry, entry]] * 2
    assert [[token.prompt_logprobs for token in message.tokens] for message in heard] == [
        [(entry, entry), None],
        [None, None],
    ]


def test_what_was_cached_is_told_with_the_first_token():
    """The first token of a sequence says how much of its prompt another one had computed; later ones say nothing."""
    prompt = (1, 2, 3, 4, 5, 6, 7, 8, 9)
    heard = serve(Server([submit("a", prompt)], [submit("b", prompt)]), ones)
    told = [(token.request_id, token.cached_tokens) for message in heard for token in message.tokens]
    assert sorted(told, key=str) == [("a", 0), ("a", None), ("b", 8), ("b", None)]


def test_an_aborted_sequence_is_never_heard_of_again():
    """An abort ends a sequence between two steps; an unknown id is nothing."""
    heard = serve(Server([submit("a", max_tokens=50)], [Abort("a"), Abort("nobody")]), ones)
    assert len(heard) == 1


def test_a_message_out_of_turn_is_ignored(caplog):
    """What belongs to the startup is logged, not obeyed, once the engine serves."""
    assert serve(Server([WeightsLanded(())]), ones) == []
    assert "ignored WeightsLanded" in caplog.text
