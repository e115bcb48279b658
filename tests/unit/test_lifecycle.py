"""app.lifecycle: which steps exist, and what probes read from it."""

from __future__ import annotations

import asyncio

import pytest

from app.lifecycle import Lifecycle, State
from streaming.clock import boottime_s
from streaming.progress import Progress


def at(*states):
    lifecycle = Lifecycle()
    for state in states:
        assert lifecycle.advance(state, state.value)
    return lifecycle


def test_the_way_to_ready():
    """Each state follows the one before it, with its reason."""
    lifecycle = at(State.LOADING, State.WARMING, State.READY)
    assert lifecycle.health().state is State.READY
    assert lifecycle.health().detail == "ready"


@pytest.mark.parametrize(
    ("states", "refused"),
    [
        ((), State.READY),
        ((State.LOADING,), State.READY),
        ((State.LOADING, State.WARMING, State.READY), State.LOADING),
        ((State.DRAINING,), State.READY),
        ((State.FAILED,), State.READY),
        ((State.FAILED,), State.DRAINING),
    ],
)
def test_impossible_steps_change_nothing(states, refused):
    """A late event cannot revive or skip a state."""
    lifecycle = at(*states)
    before = lifecycle.health()
    assert not lifecycle.advance(refused, "no")
    assert lifecycle.health() == before


def test_a_lost_engine_takes_a_ready_server_back_to_warming():
    """The weights stay; only the engine is replaced."""
    assert at(State.LOADING, State.WARMING, State.READY, State.WARMING).state is State.WARMING


async def test_a_step_wakes_whoever_waits():
    """`changed` returns at the next step."""
    lifecycle = Lifecycle()
    waiting = asyncio.create_task(lifecycle.changed())
    await asyncio.sleep(0)
    lifecycle.advance(State.LOADING, "go")
    await asyncio.wait_for(waiting, 1)


def test_retry_after_is_the_time_left_within_the_clients_limit():
    """Seconds are whole, at least 1, never above the 120 that the official client honours."""
    lifecycle = at(State.LOADING)
    assert lifecycle.retry_after_s() == 2
    now_s = boottime_s()
    lifecycle.eta.engine_phase("engine.warmup", now_s - 0.1, now_s)
    lifecycle.progress = Progress(1000, start_s=now_s - 1)
    lifecycle.progress.add(10, now_s)
    assert 99 <= lifecycle.health().eta_s <= 110
    assert 99 <= lifecycle.retry_after_s() <= 110
    lifecycle.progress = Progress(1 << 40, start_s=now_s - 1)
    lifecycle.progress.add(1, now_s)
    assert lifecycle.retry_after_s() == 120
    lifecycle.progress.add((1 << 40) - 2, now_s)
    assert lifecycle.retry_after_s() == 1
