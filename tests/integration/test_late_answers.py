"""Answers that come when nobody waits any more: dropped, without a word on stderr."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import time
from pathlib import Path

import obstore
import pytest
from obstore.store import LocalStore

from streaming.arena import HostArena
from streaming.errors import SourceUnavailable
from streaming.event_loop import run
from streaming.messages import BlobVersion, Chunk
from streaming.pipeline import land
from streaming.timings import Timings


class Failing:
    """A reader whose every read fails; it remembers the loop that would have got its answer."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None

    async def read_range(self, version: BlobVersion, start: int, end: int) -> bytes:
        """Never any."""
        self.loop = asyncio.get_running_loop()
        raise SourceUnavailable("gone")


async def unchecked(_version: BlobVersion, _start: int, _end: int, data: bytes) -> bytes:
    return data


def test_an_answer_after_a_failed_load_is_dropped():
    """A thread of obstore's that calls into the loop of a load that has ended raises nothing, and nothing is called."""
    source, called = Failing(), []
    arena = HostArena.create(4096)
    with pytest.raises(SourceUnavailable):
        land(
            source,
            [Chunk(chunk_id=0, shard="x", start=0, end=1, segments=())],
            [BlobVersion("x", 1, None)],
            arena,
            check=unchecked,
            lanes=1,
            landers=1,
            writers=1,
            on_landed=called.append,
            timings=Timings(),
        )
    assert source.loop is not None
    assert source.loop.is_closed()
    source.loop.call_soon_threadsafe(called.append, 1)
    assert called == []


def test_an_answer_in_time_is_called():
    """Before the loop is closed it is the loop that it always was."""

    async def answered() -> int:
        loop = asyncio.get_running_loop()
        answer = loop.create_future()
        threading.Thread(target=loop.call_soon_threadsafe, args=(answer.set_result, 7)).start()
        return await answer

    assert run(answered()) == 7


@pytest.mark.slow
def test_hundreds_of_cancelled_loads_leave_no_traceback(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """Obstore's threads, put off by busy ones between their look and their call, print nothing."""
    (tmp_path / "x").write_bytes(bytes(1000))
    store, is_over, interval_s = LocalStore(tmp_path), threading.Event(), sys.getswitchinterval()

    async def read_on() -> None:
        while True:
            await (await obstore.get_async(store, "x")).bytes_async()

    async def cancelled() -> None:
        reads = [asyncio.create_task(read_on()) for _ in range(16)]
        await asyncio.sleep(random.random() * 0.01)
        for read in reads:
            read.cancel()
        await asyncio.wait(reads)

    def be_busy() -> None:
        while not is_over.is_set():
            pass

    busy = [threading.Thread(target=be_busy) for _ in range(3)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in busy:
            thread.start()
        end_s = time.monotonic() + 15
        while time.monotonic() < end_s:
            run(cancelled())
    finally:
        is_over.set()
        sys.setswitchinterval(interval_s)
        for thread in busy:
            thread.join()
    assert capfd.readouterr().err == ""
