"""app.waiting_room: who gets in, in which order, and that every place is given back."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.errors import NotReady
from app.lifecycle import Lifecycle, State
from app.waiting_room import NO_WAIT, QUEUE_FULL, STOPPED, TIMEOUT, WaitingRoom

PLACES = 4
LONG_S = 60.0
# Those with a number are of the request that came as this one, modulo those there were.
EVENTS = st.one_of(
    st.just(("arrive", 0)),
    st.just(("arrive", 0)),
    st.tuples(st.just("leave"), st.integers(0, 99)),
    st.tuples(st.sampled_from([State.LOADING, State.WARMING, State.READY]), st.just(0)),
    st.just(("settle", 0)),
)


class Arrivals:
    """Requests at a room, by number, and what became of each."""

    def __init__(self):
        self.lifecycle = Lifecycle()
        self.room = WaitingRoom(self.lifecycle, max_requests=PLACES)
        self.tasks = []
        self.came_early = set()
        self.entered = []
        self.most_held = 0

    async def _arrive(self, number):
        if self.lifecycle.state is not State.READY:
            self.came_early.add(number)
        try:
            await self.room.until_ready(LONG_S)
        finally:
            self.most_held = max(self.most_held, self.room.held)
        assert self.lifecycle.state is State.READY
        self.entered.append(number)

    async def play(self, event, index):
        """One event, and whatever it causes at once."""
        if event == "arrive":
            self.tasks.append(asyncio.create_task(self._arrive(len(self.tasks))))
        elif event == "leave" and self.tasks:
            self.tasks[index % len(self.tasks)].cancel()
        elif event == "settle":
            await self.settle()
        elif isinstance(event, State):
            self.lifecycle.advance(event, event.value)
        self.most_held = max(self.most_held, self.room.held)

    async def settle(self):
        """Long enough for everything that can happen without another event."""
        for _ in range(4 * len(self.tasks) + 4):
            await asyncio.sleep(0)


# The second one is on its way when the first one is woken, in vain.
@example([("arrive", 0), ("settle", 0), ("arrive", 0), (State.LOADING, 0), ("settle", 0)], State.READY)
@given(st.lists(EVENTS, min_size=15, max_size=60), st.sampled_from([State.READY, State.DRAINING, State.FAILED]))
def test_whoever_waited_goes_in_as_they_came_and_every_place_is_given_back(events, end):
    """However arrivals, leavings, readiness and its loss fall together; the bound holds, and the end ends all."""

    async def run():
        arrivals = Arrivals()
        for event, index in events:
            await arrivals.play(event, index)
        for state in (State.LOADING, State.WARMING, end):
            arrivals.lifecycle.advance(state, state.value)
        await arrivals.settle()
        assert all(task.done() for task in arrivals.tasks)
        results = await asyncio.gather(*arrivals.tasks, return_exceptions=True)
        assert all(result is None or isinstance(result, (NotReady, asyncio.CancelledError)) for result in results)
        assert arrivals.entered == [number for number in arrivals.entered if results[number] is None]
        waited = [number for number in arrivals.entered if number in arrivals.came_early]
        assert waited == sorted(waited)
        assert arrivals.most_held <= PLACES
        assert arrivals.room.held == 0
        refused = arrivals.room.refused
        assert sum(refused.values()) == sum(isinstance(result, NotReady) for result in results)
        assert refused[NO_WAIT] == refused[TIMEOUT] == 0
        if end is State.READY:
            assert refused[STOPPED] == 0

    asyncio.run(run())


async def held(room, count):
    """So many that wait."""
    tasks = [asyncio.create_task(room.until_ready(LONG_S)) for _ in range(count)]
    await asyncio.sleep(0)
    assert room.held == count
    return tasks


@pytest.mark.parametrize(
    ("wait_s", "others", "reason", "words"),
    [
        (0, 0, NO_WAIT, "not ready: starting"),
        (LONG_S, PLACES, QUEUE_FULL, "4 requests wait"),
        (0.01, 0, TIMEOUT, "after 0.01 s"),
        (0.01, 1, TIMEOUT, "after 0.01 s"),
    ],
)
async def test_a_refusal_says_why_and_when_to_come_back(wait_s, others, reason, words):
    """Whoever does not wait, finds no place or waits in vain learns it, is counted, and moves nobody who waits."""
    room = WaitingRoom(Lifecycle(), max_requests=PLACES)
    waiting = await held(room, others)
    with pytest.raises(NotReady, match=words) as caught:
        await room.until_ready(wait_s)
    assert caught.value.retry_after_s >= 1
    assert {name: count for name, count in room.refused.items() if count} == {reason: 1}
    assert room.held == others
    for task in waiting:
        task.cancel()


@pytest.mark.parametrize("state", [State.DRAINING, State.FAILED])
async def test_nobody_waits_for_a_server_that_goes_away(state):
    """Those that wait are refused, and so is whoever comes."""
    lifecycle = Lifecycle()
    room = WaitingRoom(lifecycle, max_requests=PLACES)
    waiting = await held(room, 3)
    lifecycle.advance(state, "the reason")
    with pytest.raises(NotReady, match="the reason"):
        await room.until_ready(LONG_S)
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(result, NotReady) for result in results)
    assert room.refused[STOPPED] == 4
