"""How the engine tells how full it is: rarely, and never what has not changed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from app.engine.blocks import BlockAllocator
from app.engine.device_memory import DeviceMemory
from app.engine.loop import Loop
from app.engine.reporting import INTERVAL_S, Reporting
from app.engine.scheduler import Scheduler
from app.messages import DeviceUse, EngineStats
from tests.unit.test_engine_loop import Landed, Server, ones, submit


def stats(running: int) -> EngineStats:
    return EngineStats(running=running, waiting=0, used_blocks=0, num_blocks=1, preemptions=0)


def test_steps_in_quick_succession_tell_once_per_interval():
    """A thousand steps within an interval are one message, however much changes."""
    now_s, running, told = 100.0, 0, []
    reporting = Reporting(lambda: stats(running), told.append, clock=lambda: now_s)
    for _ in range(1000):
        running += 1
        now_s += INTERVAL_S * 3.5 / 1000
        reporting.tick()
    assert len(told) == 4


def test_what_has_not_changed_is_not_told():
    """An idle engine says so once."""
    told = []
    reporting = Reporting(lambda: stats(0), told.append)
    for _ in range(3):
        reporting.tell()
    assert told == [stats(0)]


ALLOCATOR = {
    "allocated_bytes": {"all": {"current": 3, "peak": 9}},
    "reserved_bytes": {"all": {"current": 8, "peak": 9}},
    "num_alloc_retries": 2,
    "num_ooms": 1,
}


def test_the_devices_peak_is_the_most_that_was_seen():
    """Memory that was given back still counts as a watermark; the allocator's figures are torch's."""
    told = []
    free = iter([70, 20, 50])
    device = DeviceMemory(lambda: (next(free), 100), lambda: ALLOCATOR)
    reporting = Reporting(lambda: stats(0), told.append, device=device)
    for _ in range(3):
        reporting.tell()
    uses = [
        DeviceUse(
            total_bytes=100,
            used_bytes=used,
            peak_bytes=peak,
            allocated_bytes=3,
            reserved_bytes=8,
            allocation_retries=2,
            allocation_failures=1,
        )
        for used, peak in ((30, 30), (80, 80), (50, 80))
    ]
    assert [each.device for each in told] == uses


def serve(server: Server, scheduler: Scheduler) -> None:
    """Run a loop that reports, until the server is gone."""
    loop = Loop(
        receive=server.receive,
        send=server.heard.append,
        scheduler=scheduler,
        runner=SimpleNamespace(launch=lambda spans: Landed(ones(spans))),
        max_model_len_tokens=64,
        vocab_size=100,
        reporting=Reporting(scheduler.stats, server.heard.append),
    )
    with pytest.raises(Server.Gone):
        loop.run()


@pytest.mark.parametrize("prompts", [1, 3])
def test_a_loop_tells_that_it_works_and_that_it_is_idle_again(prompts):
    """The first step's load is told at once, and an empty engine before it waits."""
    server = Server([submit(str(index), max_tokens=3) for index in range(prompts)])
    blocks = BlockAllocator(16)
    scheduler = Scheduler(blocks, block_size_tokens=4, max_num_seqs=2, max_num_batched_tokens=16, prefix_caching=True)
    serve(server, scheduler)
    told = [each for each in server.heard if isinstance(each, EngineStats)]
    assert (told[0].running, told[0].waiting) == (min(prompts, 2), max(prompts - 2, 0))
    assert told[0].used_blocks > 0
    assert told[-1] == EngineStats(running=0, waiting=0, used_blocks=0, num_blocks=16, preemptions=0)
    assert len(told) == 2


def test_a_preemption_is_counted():
    """Two sequences that outgrow the cache: the younger one gives its blocks up."""
    blocks = BlockAllocator(4)
    scheduler = Scheduler(blocks, block_size_tokens=4, max_num_seqs=2, max_num_batched_tokens=16, prefix_caching=False)
    server = Server([submit("a", max_tokens=9), submit("b", max_tokens=9)])
    serve(server, scheduler)
    assert scheduler.stats().preemptions > 0
