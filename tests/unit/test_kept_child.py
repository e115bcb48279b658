"""app.kept_child: a role over as many processes as it takes, with real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess

import msgspec
import pytest

from app import kept_child
from app.child import Child, spawn
from app.kept_child import KeptChild


class Nothing(msgspec.Struct, tag=True):
    """What a sleeper says."""


class Watched:
    """A kept sleeper and everything that was told of it."""

    def __init__(self, first=None):
        self.died, self.lost, self.errors = [], [], []
        self.children = [first or self.spawn()]
        self.replaced = asyncio.Event()
        self.given_up = asyncio.Event()
        self.kept = KeptChild(
            self.children[0],
            Nothing,
            respawn=self.respawn,
            on_message=lambda *_: None,
            on_died=self.died.append,
            on_replaced=self.replaced.set,
            on_lost=self._lose,
            on_error=self.errors.append,
        )

    def spawn(self):
        """Another sleeper."""
        return spawn("tests.unit.sleeper", os.environ)

    def respawn(self):
        """Another sleeper in the place of the last one."""
        self.children.append(self.spawn())
        return self.children[-1]

    def _lose(self, error):
        self.lost.append(error)
        self.given_up.set()

    async def next_death(self):
        """Kill the one that lives, and wait for what follows."""
        self.replaced.clear()
        self.children[-1].process.kill()
        waits = [asyncio.create_task(event.wait()) for event in (self.replaced, self.given_up)]
        await asyncio.wait(waits, timeout=20, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()


async def until(condition):
    """Return once it holds."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - a process has no event
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def _without_delay(monkeypatch):
    monkeypatch.setattr(kept_child, "_BACKOFF_S", (0.0, 0.01, 0.02))


@pytest.fixture
async def watched():
    """One, whose last process is ended."""
    found = Watched()
    yield found
    found.kept.close()
    assert not found.errors


async def test_a_death_is_told_at_once_and_followed_by_another_process(watched):
    """The dead one is reaped, so that no zombie is left."""
    await watched.next_death()
    assert watched.died == ["died"]
    assert watched.kept.restarts == 1
    assert watched.children[0].process.returncode == -signal.SIGKILL
    assert watched.children[1].process.poll() is None


async def test_one_that_hangs_is_killed_with_its_reason(watched):
    """A stopped process cannot answer SIGTERM, but it can be killed."""
    os.kill(watched.children[0].process.pid, signal.SIGSTOP)
    watched.kept.kill("hung")
    await asyncio.wait_for(watched.replaced.wait(), 20)
    assert watched.died == ["hung"]
    assert watched.children[0].process.returncode == -signal.SIGKILL


async def test_too_many_deaths_in_a_short_time_are_the_end(watched):
    """The fourth is the last, and the reason is one line with exit code 6."""
    for _ in range(4):
        await watched.next_death()
    (error,) = watched.lost
    assert (error.kind, error.exit_code) == ("ProcessLost", 6)
    assert "died 4 times within ten minutes" in error.message
    assert len(watched.children) == 4


async def test_deaths_of_long_ago_are_forgotten(watched, monkeypatch):
    """A server that runs for months may lose a process now and then."""
    monkeypatch.setattr(kept_child, "_WINDOW_S", 0.0)
    for _ in range(6):
        await watched.next_death()
    assert watched.lost == []
    assert watched.kept.restarts == 6


async def test_one_whose_work_is_done_is_not_replaced(watched):
    """It may end as it likes, and is reaped."""
    watched.kept.retire()
    watched.children[0].process.kill()
    await until(lambda: watched.children[0].process.returncode is not None)
    assert watched.children[0].process.returncode is not None
    assert (watched.died, watched.kept.restarts) == ([], 0)


async def test_one_that_the_kernel_does_not_let_go_is_the_end(watched, monkeypatch):
    """Nothing can be put in its place while it holds the GPU."""
    monkeypatch.setattr(kept_child, "_EXIT_S", 0.0)
    monkeypatch.setattr(type(watched.children[0].process), "poll", lambda _: None)
    watched.kept.kill("hung")
    await asyncio.wait_for(watched.given_up.wait(), 20)
    assert "does not end although it was killed" in watched.lost[0].message
    monkeypatch.undo()


async def test_what_is_closed_while_it_waits_starts_nobody(watched, monkeypatch):
    """The way out is not crossed by a restart."""
    monkeypatch.setattr(kept_child, "_BACKOFF_S", (60.0,))
    watched.children[0].process.kill()
    await until(lambda: watched.died)
    watched.kept.close()
    await asyncio.sleep(0.05)
    assert len(watched.children) == 1


async def test_one_that_hangs_is_replaced_even_if_its_socket_stays_open():
    """A process that is stuck in the kernel closes nothing, so the end of its socket is not waited for."""
    ours, theirs = socket.socketpair()
    with theirs:
        stuck = Child("stuck", subprocess.Popen(["sleep", "60"]), ours)  # noqa: ASYNC220 - as `spawn` does
        watched = Watched(stuck)
        watched.kept.kill("hung")
        assert watched.died == ["hung"]
        await asyncio.wait_for(watched.replaced.wait(), 20)
    assert watched.children[1].process.poll() is None
    watched.kept.close()


async def test_a_second_kill_of_the_same_process_counts_once(watched):
    """Impatience is no second death."""
    watched.kept.kill("hung")
    watched.kept.kill("hung")
    await asyncio.wait_for(watched.replaced.wait(), 20)
    assert (watched.died, watched.kept.restarts) == (["hung"], 1)
