"""The ledger as a trace."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from app.telemetry import names
from app.telemetry.ledger import Ledger
from app.telemetry.spans import SpanContext, UnixClock
from app.telemetry.startup_trace import Failure, first_answer_trace, startup_trace, unattributed_s
from streaming.counters import FetchCounters
from streaming.messages import RangeSummary, RangeTime, ShardTimes

ROOT = SpanContext("ab" * 16, "cd" * 8)
tenths = st.integers(0, 50)


@given(st.lists(st.tuples(tenths, tenths).map(sorted), max_size=8), st.integers(1, 40))
def test_unattributed_is_what_no_phase_covers(intervals, end):
    """As counted tenth by tenth."""
    uncovered = sum(not any(start <= tenth < stop for start, stop in intervals) for tenth in range(end))
    assert unattributed_s(intervals, end) == uncovered


def ledger() -> Ledger:
    """Ready after 4 s; two phases side by side; one second unexplained; a shard on its way."""
    made = Ledger(exec_s=100.0)
    made.phase("interpreter", 100.0, 101.0)
    made.phase("weights.fetch", 101.0, 103.0)
    made.phase("weights.copy", 102.0, 103.0)
    milestones = (names.FETCH_START, names.FETCH_END, names.STAGING_COMPLETE, names.LOAD_COMPLETE)
    for at_s, name in enumerate(milestones, 101):
        made.milestone(name, at_s)
    made.milestone(names.READY, 104.0)
    made.fetched_bytes = 1000
    made.counters = FetchCounters(retries={"503": 2, "timeout": 1}, verified_bytes=900, unverified_bytes=100)
    made.shards = (ShardTimes(shard="s", nbytes=400, fetch=(101.0, 102.0), stage=(102.0, 102.5), copy=(102.5, 103.0)),)
    return made


def test_phases_are_children_and_shards_grandchildren():
    """Times are exec's plus theirs; rates and the rest that nothing explains are attributes."""
    clock = UnixClock()
    trace = startup_trace(ledger(), ROOT, None, clock)
    by_name = {span.name: span for span in trace.spans}
    root = by_name["startup"]
    assert trace.always
    assert (root.span_id, root.start_ns, root.end_ns) == (ROOT.span_id, clock.ns(100.0), clock.ns(104.0))
    assert root.attributes["unattributed_ms"] == 1000.0
    assert root.attributes["overlap_ratio"] == 1.0
    assert root.attributes["fetch_s"] == root.attributes["stage_s"] == root.attributes["load_s"] == 1.0
    assert "ttft_s" not in root.attributes
    assert root.attributes["coldstream.retries"] == 3
    fetch = by_name["weights.fetch"]
    assert fetch.parent_id == ROOT.span_id
    assert (fetch.attributes["coldstream.bytes"], fetch.attributes["coldstream.throughput_bytes_per_s"]) == (1000, 500)
    assert by_name["shard.fetch"].parent_id == fetch.span_id
    assert by_name["shard.copy"].links == (SpanContext(ROOT.trace_id, by_name["shard.fetch"].span_id),)
    assert "shard.stage" not in by_name  # its phase was not told


def test_the_root_tells_what_the_start_met():
    """Restarts, fallbacks, what was verified and what not, and the GPU's memory at two moments."""
    made = ledger()
    made.restarts["engine"] += 1
    made.fallback("host-arena", "no permission")
    made.device_used_bytes = {"weights_landed": 30, "ready": 40}
    root = startup_trace(made, ROOT, None, UnixClock()).spans[0]
    assert root.error == ""
    assert root.attributes["coldstream.restarts.engine"] == 1
    assert root.attributes["coldstream.restarts.loader"] == 0
    assert root.attributes["coldstream.fallbacks"] == ("host-arena",)
    assert root.attributes["coldstream.verified_bytes"] == 900
    assert root.attributes["coldstream.unverified_bytes"] == 100
    assert root.attributes["coldstream.gpu_memory.weights_landed_bytes"] == 30
    assert root.attributes["coldstream.gpu_memory.ready_bytes"] == 40


def test_the_slowest_reads_of_a_shard_are_events_of_its_fetch():
    """Where they began, with their bytes and seconds, in order of time; how many there were in all."""
    made, clock = ledger(), UnixClock()
    slowest = (RangeTime(64, 128, 101.5, 101.9), RangeTime(0, 64, 101.0, 101.2))
    ranges = RangeSummary(counts=(0, 5, 1), sum_s=1.0, slowest=slowest)
    made.shards = (msgspec.structs.replace(made.shards[0], ranges=ranges),)
    spans = {span.name: span for span in startup_trace(made, ROOT, None, clock).spans}
    fetch = spans["shard.fetch"]
    assert fetch.attributes["coldstream.ranges"] == 6
    assert [(event.name, event.at_ns) for event in fetch.events] == [
        ("slow_range", clock.ns(101.0)),
        ("slow_range", clock.ns(101.5)),
    ]
    assert fetch.events[1].attributes == {
        "coldstream.range.start": 64,
        "coldstream.range.end": 128,
        "coldstream.range.duration_s": 0.4,
    }
    assert spans["shard.copy"].events == ()


def test_a_shard_that_went_to_disk_has_its_fetch_only():
    """Nothing waits and nothing is copied chunk by chunk there."""
    made = ledger()
    made.phase("weights.stage", 102.0, 103.0)
    made.shards = (ShardTimes(shard="s", nbytes=400, fetch=(101.0, 102.0)),)
    shards = [span for span in startup_trace(made, ROOT, None, UnixClock()).spans if span.name.startswith("shard.")]
    assert [(span.name, span.events) for span in shards] == [("shard.fetch", ())]


def test_a_start_that_fails_is_an_error_with_what_there_was():
    """It ends with the failure; the class of the error is told, and phases that had ended."""
    made, clock = Ledger(exec_s=100.0), UnixClock()
    made.phase("interpreter", 100.0, 101.0)
    made.milestone(names.FETCH_START, 101.0)
    failure = Failure(kind="BlobNotFound", at_s=103.0, landed_bytes=7)
    root, phase = startup_trace(made, ROOT, None, clock, failure).spans
    assert (root.start_ns, root.end_ns, root.error) == (clock.ns(100.0), clock.ns(103.0), "BlobNotFound")
    assert root.attributes["error.type"] == "BlobNotFound"
    assert root.attributes["coldstream.bytes"] == 7
    assert root.attributes["unattributed_ms"] == 2000.0
    assert (phase.name, phase.parent_id) == ("interpreter", ROOT.span_id)


def test_another_engines_phases_are_no_part_of_the_start():
    """A restart after readiness does not stretch the trace."""
    made = ledger()
    made.phase("engine.bind", 200.0, 201.0)
    assert "engine.bind" not in {span.name for span in startup_trace(made, ROOT, None, UnixClock()).spans}


def test_the_first_answer_comes_later_with_all_figures():
    """A child of the startup, linked to its request."""
    made = ledger()
    made.milestone(names.FIRST_TOKEN, 104.0)
    made.milestone(names.FIRST_ANSWER, 106.0)
    request = SpanContext("12" * 16, "34" * 8)
    clock = UnixClock()
    trace = first_answer_trace(made, ROOT, request, clock)
    (span,) = trace.spans
    assert (trace.remote_parent, span.links) == (ROOT, (request,))
    assert (span.start_ns, span.end_ns) == (clock.ns(104.0), clock.ns(106.0))
    assert (span.attributes["cold_start_s"], span.attributes["cold_start_from_exec_s"]) == (3.0, 4.0)
