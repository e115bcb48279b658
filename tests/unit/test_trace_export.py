"""The way out of the server: it never waits, and it never grows."""

from __future__ import annotations

import os
import time

import psutil
import pytest

from app.child import Child, spawn
from app.telemetry.export import TraceExport
from app.telemetry.spans import Trace
from tests.coldstream import wait_for

TRACE = Trace(trace_id="ab" * 16, spans=())


def test_what_does_not_fit_is_dropped_and_counted():
    """Nobody reads: a bounded number waits."""
    export = TraceExport(lambda: pytest.fail("not started"))
    for _ in range(1000):
        export.put(TRACE)
    assert export.dropped == 1000 - 256


@pytest.mark.parametrize("exporters", [["console"], ["no_such_exporter"]])
def test_an_exporter_that_is_done_for_delays_nothing(exporters):
    """One that works ends when it has sent everything; one that dies is told once, and traces go nowhere."""
    children: list[Child] = []

    def start() -> Child:
        children.append(spawn("app.telemetry.exporter", os.environ, *exporters))
        return children[0]

    export = TraceExport(start)
    export.start()
    wait_for(lambda: children)
    if exporters != ["console"]:
        children[0].process.wait(20)
    for _ in range(5):
        export.put(TRACE)
    export.close(20)
    assert children[0].process.returncode == (0 if exporters == ["console"] else 2)


def test_an_exporter_that_has_run_for_long_sends_its_last_traces():
    """It lives until it has sent them, though the thread that feeds it has nothing left to do."""
    children: list[Child] = []

    def start() -> Child:
        children.append(spawn("app.telemetry.exporter", os.environ, "console"))
        return children[0]

    export = TraceExport(start)
    export.start()
    wait_for(lambda: children)
    process = psutil.Process(children[0].process.pid)
    wait_for(lambda: process.nice() == 19)  # it has asked to end with its parent by then
    export.put(TRACE)
    export.close(20)
    assert children[0].process.returncode == 0


def test_closing_waits_so_long_and_no_longer():
    """An exporter that reads nothing is ended."""
    children: list[Child] = []

    def start() -> Child:
        children.append(spawn("tests.unit.sleeper", os.environ))
        return children[0]

    export = TraceExport(start)
    export.start()
    wait_for(lambda: children)
    for _ in range(200):
        export.put(Trace(trace_id="x" * 100_000, spans=()))
    start_s = time.monotonic()
    export.close(0.5)
    assert 0.4 < time.monotonic() - start_s < 3
    assert children[0].process.returncode is not None
