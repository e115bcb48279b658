"""The engine's loop around a model of a few lines: what it says to whom, and what it survives."""

from __future__ import annotations

import pytest

from app.engine.blocks import BlockAllocator
from app.engine.loop import Loop
from app.engine.scheduler import Scheduler
from app.messages import Abort, RequestFailed, SamplingParams, StepOutput, Submit, WeightsLanded


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


def serve(server: Server, run, *, num_blocks: int = 16) -> list:
    """Run a loop whose model is `run` until it is idle and the server is gone."""
    blocks = BlockAllocator(num_blocks)
    scheduler = Scheduler(blocks, block_size_tokens=4, max_num_seqs=4, max_num_batched_tokens=16)
    runner = type("Runner", (), {"run": staticmethod(run)})
    loop = Loop(
        receive=server.receive,
        send=server.heard.append,
        scheduler=scheduler,
        runner=runner,
        max_model_len_tokens=64,
        vocab_size=100,
    )
    with pytest.raises(Server.Gone):
        loop.run()
    assert blocks.num_free == num_blocks
    return server.heard


def submit(name: str, prompt: tuple[int, ...] = (1, 2, 3), **sampling) -> Submit:
    return Submit(name, prompt, SamplingParams(**{"max_tokens": 2} | sampling))


def ones(spans):
    """A model that always draws token 1."""
    return [1 for span in spans if span.samples]


def test_one_message_per_step_tells_every_sequence_its_token():
    """The tokens of a step travel together; the last one carries why the sequence ended."""
    heard = serve(Server([submit("a"), submit("b", max_tokens=9, stop_token_ids=(1,))]), ones)
    assert [
        [tuple(getattr(token, field) for field in token.__struct_fields__) for token in m.tokens] for m in heard
    ] == [
        [("a", 1, None), ("b", 1, "stop")],
        [("a", 1, "length")],
    ]


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (submit("bad", ()), "empty"),
        (submit("bad", (1, 100)), "vocabulary"),
        (submit("bad", (-1,)), "vocabulary"),
        (submit("bad", max_tokens=62), "model takes 64"),
        (submit("bad", (1,) * 30, max_tokens=11), "cache holds 40"),
    ],
)
def test_a_request_that_cannot_run_is_refused_and_the_others_go_on(bad, complaint):
    """What would fail inside a step never gets into one."""
    heard = serve(Server([bad, submit("good", max_tokens=1)]), ones, num_blocks=10)
    assert isinstance(heard[0], RequestFailed)
    assert heard[0].request_id == "bad"
    assert complaint in heard[0].message
    assert heard[1].tokens[0].request_id == "good"


def test_a_step_that_fails_ends_its_sequences_and_the_loop_lives():
    """An exception inside a step fails the requests in it; later ones are served."""

    def run(spans):
        if spans[0].sequence.request_id == "a":
            raise RuntimeError("boom")
        return ones(spans)

    heard = serve(Server([submit("a")], [submit("b", max_tokens=1)]), run)
    assert [type(message) for message in heard] == [RequestFailed, StepOutput]
    assert heard[0].request_id == "a"


def test_a_row_without_finite_logits_fails_alone():
    """The sequence whose logits are not finite ends with an error; its neighbour gets its token."""

    def run(spans):
        return [None if span.sequence.request_id == "a" else 1 for span in spans]

    heard = serve(Server([submit("a"), submit("b", max_tokens=1)]), run)
    assert [type(message) for message in heard] == [RequestFailed, StepOutput]
    assert (heard[0].request_id, heard[1].tokens[0].request_id) == ("a", "b")


def test_an_aborted_sequence_is_never_heard_of_again():
    """An abort ends a sequence between two steps; an unknown id is nothing."""
    heard = serve(Server([submit("a", max_tokens=50)], [Abort("a"), Abort("nobody")]), ones)
    assert len(heard) == 1


def test_a_message_out_of_turn_is_ignored(caplog):
    """What belongs to the startup is logged, not obeyed, once the engine serves."""
    assert serve(Server([WeightsLanded(())]), ones) == []
    assert "ignored WeightsLanded" in caplog.text
