"""The engine's client: whose token is whose, what a slow reader gets, and what the engine hears."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine_client import EngineClient
from app.errors import EngineFailure, NotReady, Overloaded
from app.messages import Abort, RequestFailed, SamplingParams, StepOutput, Submit, TokenOutput

SAMPLING = SamplingParams(max_tokens=10)


class Attached:
    """A client with an engine that only listens, and a request of `count` sequences."""

    def __init__(self, count, max_sequences=8):
        self.heard = []
        self.client = EngineClient(max_sequences=max_sequences)
        self.client.attach(self.heard.append)
        self.running = self.client.submit([((1,), SAMPLING)] * count)
        self.ids = [message.request_id for message in self.heard if isinstance(message, Submit)]

    def step(self, *tokens):
        """One step's tokens: (index, token id) or (index, token id, finish reason)."""
        self.client.deliver(StepOutput(tuple(TokenOutput(self.ids[index], *rest) for index, *rest in tokens)))

    async def read(self):
        """Indices and token ids of what has come."""
        return [(index, token.token_id) for index, token in await self.running.tokens()]

    def aborted(self):
        """What the engine was told to abort."""
        return [message.request_id for message in self.heard if isinstance(message, Abort)]


async def test_a_reader_waits_for_the_next_token():
    """`tokens` returns when something has come, not before."""
    attached = Attached(1)
    reading = asyncio.create_task(attached.read())
    await asyncio.sleep(0.01)
    assert not reading.done()
    attached.step((0, 7))
    assert await reading == [(0, 7)]


@given(st.lists(st.lists(st.integers(0, 2), unique=True, max_size=3), max_size=120), st.randoms())
def test_a_reader_that_falls_behind_gets_every_token_in_order(steps, random):
    """Whenever it reads, what it reads is what was delivered, and never much at once."""

    async def run():
        attached = Attached(3)
        delivered, read = [], []
        for number, indices in enumerate(steps):
            attached.step(*((index, number) for index in indices))
            delivered += [(index, number) for index in indices]
            if len(read) < len(delivered) and random.random() < 0.1:
                read += await attached.read()
        while len(read) < len(delivered):
            pieces = await attached.read()
            assert 0 < len(pieces) <= 64
            read += pieces
        assert read == delivered

    asyncio.run(run())


async def test_a_sequence_that_ended_is_not_aborted():
    """Leaving the context aborts what still runs, and nothing else."""
    attached = Attached(2)
    with attached.running:
        attached.step((0, 7, "length"), (1, 7))
        await attached.read()
        assert attached.running.unfinished
    assert attached.aborted() == [attached.ids[1]]
    assert not attached.running.unfinished


async def test_an_aborted_sequence_is_read_no_further():
    """Tokens that had come before the abort, or come after it, are dropped; the engine hears of it once."""
    attached = Attached(2)
    attached.step((0, 1), (1, 1))
    attached.step((0, 2), (1, 2))
    read = []
    with attached.running:
        for index, token in await attached.running.tokens():
            read.append((index, token.token_id))
            attached.running.abort(0)
        attached.step((0, 3), (1, 3))
        assert await attached.read() == [(1, 3)]
    assert read == [(0, 1), (1, 1), (1, 2)]
    assert attached.aborted() == attached.ids


async def test_a_failure_comes_behind_the_tokens_before_it():
    """What came before the failure is read, then it raises; what the others have made since is not read."""
    attached = Attached(2)
    attached.step((0, 1), (1, 1))
    attached.client.deliver(RequestFailed(attached.ids[0], "out of memory"))
    attached.step((1, 2))
    with attached.running:
        assert await attached.read() == [(0, 1), (1, 1)]
        with pytest.raises(EngineFailure, match="out of memory"):
            await attached.read()
    assert attached.aborted() == [attached.ids[1]]


async def test_an_engine_that_is_lost_fails_its_readers():
    """A reader that waits is told, and nothing can be submitted until another engine is attached."""
    attached = Attached(1)
    reading = asyncio.create_task(attached.read())
    await asyncio.sleep(0)
    attached.client.detach(EngineFailure("it died"))
    with pytest.raises(EngineFailure, match="it died"):
        await reading
    with pytest.raises(NotReady):
        attached.client.submit([((1,), SAMPLING)])


async def test_room_is_free_again_once_a_sequence_was_read_to_its_end():
    """A finished sequence counts until its last token is read: then there is room, and the client is drained."""
    attached = Attached(2, max_sequences=2)
    attached.step((0, 1, "stop"), (1, 1, "stop"))
    with pytest.raises(Overloaded):
        attached.client.submit([((1,), SAMPLING)])
    await attached.read()
    async with asyncio.timeout(1):
        await attached.client.drained()
    attached.client.submit([((1,), SAMPLING)])


async def test_an_engine_owes_nothing_for_what_its_reader_has_not_read():
    """A client that reads slowly keeps its request, and nobody takes the engine that has ended it for hung."""
    attached = Attached(2)
    assert attached.client.has_work
    attached.step((0, 1, "length"))
    assert attached.client.has_work
    attached.step((1, 1, "stop"))
    assert not attached.client.has_work


@pytest.mark.parametrize("end", ["failure", "abort", "detach"])
async def test_an_engine_owes_nothing_for_what_has_ended_otherwise(end):
    """A request that failed or was aborted, or an engine that is gone."""
    attached = Attached(1)
    if end == "failure":
        attached.client.deliver(RequestFailed(attached.ids[0], "no"))
    elif end == "abort":
        attached.running.abort(0)
    else:
        attached.client.detach(EngineFailure("it died"))
    assert not attached.client.has_work
