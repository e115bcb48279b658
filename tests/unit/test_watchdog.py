"""app.watchdog: silence of a process that owes something."""

from __future__ import annotations

import asyncio
import time

import pytest

from app import watchdog
from app.watchdog import Watchdog


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch):
    monkeypatch.setattr(watchdog, "_PERIOD_S", 0.01)


async def watched(patience_s, *, speaks_every_s=None, for_s=0.3):
    """The silences that are told of within `for_s`."""
    silences = []
    dog = Watchdog(lambda: patience_s, silences.append)
    end_s = time.monotonic() + for_s
    while time.monotonic() < end_s:
        await asyncio.sleep(speaks_every_s or for_s)
        if speaks_every_s is not None:
            dog.heard()
    dog.close()
    return silences


async def test_silence_is_told_with_its_limit():
    """Each time the limit is over, not only once."""
    silences = await watched(0.1)
    assert silences
    assert set(silences) == {0.1}


async def test_who_speaks_is_left_in_peace():
    """Every word starts the time anew."""
    assert await watched(30.0, speaks_every_s=0.01) == []


async def test_who_owes_nothing_may_be_silent():
    """No limit, no silence."""
    assert await watched(None) == []


async def test_the_time_begins_when_something_is_owed():
    """Silence from before, however long, does not count."""
    owes, silences = False, []
    dog = Watchdog(lambda: 60.0 if owes else None, silences.append)
    dog._silence_s += 1000
    await asyncio.sleep(0.05)
    owes = True
    await asyncio.sleep(0.05)
    dog.close()
    assert silences == []


async def test_a_closed_one_says_nothing():
    """Also not what was due already."""
    silences = []
    dog = Watchdog(lambda: 0.01, silences.append)
    dog.close()
    await asyncio.sleep(0.1)
    assert silences == []


async def test_time_in_which_the_server_itself_was_frozen_does_not_count(monkeypatch):
    """A pod that was stopped as a whole has two children that had no chance to speak."""
    silences = []
    dog = Watchdog(lambda: 60.0, silences.append)
    real = time.monotonic
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: real() + 1000)
    await asyncio.sleep(0.05)
    dog.close()
    assert silences == []
