"""Requests for which nobody has a token end together, and silence is not met with patience for ever."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from streaming.token_queue import NoToken, TokenFailure, TokenQueue

READS = 11
NO_TOKEN, SILENCE, MISSING = "no token", "no token: silence", "no such blob"


def judge(error):
    """As the three texts say."""
    return TokenFailure(str(error).startswith(NO_TOKEN), str(error) == SILENCE)


class Store:
    """Requests that ask for a token one at a time, as obstore's do, and what the next of them are told."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = 0
        self.together = threading.Barrier(READS)
        self._lock = asyncio.Lock()

    async def read(self):
        """A blob's bytes, once there is a token."""
        async with self._lock:
            self.asked += 1
            await asyncio.sleep(0.2 if self.asked == 1 else 0)  # in which the others come
            said = self.answers.pop(0)
        if said != "a token":
            raise OSError(said)
        return b"bytes"


def outcomes(queue, store):
    """What many reads of several threads at once get."""

    def outcome(_):
        store.together.wait()
        try:
            return queue.call(store.read())
        except (NoToken, OSError) as error:
            return str(error)

    with ThreadPoolExecutor(READS) as pool:
        return list(pool.map(outcome, range(READS)))


def refused(queue, said):
    """The error of one read that is told this."""
    with pytest.raises(NoToken) as caught:
        queue.call(Store(said).read())
    return caught.value


@pytest.mark.parametrize("said", [NO_TOKEN, SILENCE])
def test_who_gets_no_token_ends_those_that_wait(said):
    """Whichever asked first; the second may have begun by then."""
    store = Store(*[said] * READS)
    assert outcomes(TokenQueue(judge, 60), store) == [said] * READS
    assert store.asked <= 2


def test_with_a_token_everybody_has_its_own_answer():
    """One that finds nothing ends nobody else."""
    store = Store("a token", MISSING, *["a token"] * (READS - 2))
    assert sorted(map(str, outcomes(TokenQueue(judge, 60), store))) == sorted([MISSING, *["b'bytes'"] * (READS - 1)])
    assert store.asked == READS


def test_those_that_come_later_ask_again():
    """A failure is not kept, as long as there is patience."""
    queue = TokenQueue(judge, 60)
    assert not refused(queue, SILENCE).is_final
    assert queue.call(Store("a token").read()) == b"bytes"


def test_silence_is_final_once_there_is_no_patience_left():
    """Since the first request without a token; then nobody asks."""
    queue, store = TokenQueue(judge, 0), Store()
    assert refused(queue, SILENCE).is_final
    with pytest.raises(NoToken) as caught:
        queue.call(store.read())
    assert (str(caught.value), caught.value.is_final, store.asked) == (SILENCE, True, 0)


def test_an_answer_is_never_final():
    """Whoever answers is there, and other rules say how long it is asked."""
    queue = TokenQueue(judge, 0)
    assert not refused(queue, NO_TOKEN).is_final
    assert queue.call(Store("a token").read()) == b"bytes"


def test_a_token_ends_the_time_without_one(monkeypatch):
    """What was silent an hour ago and answered since has all the patience again."""
    now = SimpleNamespace(s=0.0)
    monkeypatch.setattr("streaming.token_queue.time", SimpleNamespace(monotonic=lambda: now.s))
    queue = TokenQueue(judge, 20)
    refused(queue, SILENCE)
    now.s = 19.0
    assert not refused(queue, SILENCE).is_final
    queue.call(Store("a token").read())
    now.s = 3600.0
    assert not refused(queue, SILENCE).is_final
    now.s = 3620.0
    assert refused(queue, SILENCE).is_final
