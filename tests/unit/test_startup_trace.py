"""The ledger as a trace."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.telemetry import names
from app.telemetry.ledger import Ledger
from app.telemetry.spans import SpanContext, UnixClock
from app.telemetry.startup_trace import first_token_trace, startup_trace, unattributed_s
from streaming.messages import ShardTimes

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
    for at_s, name in enumerate((names.FETCH_START, names.FETCH_END, names.STAGING_COMPLETE, names.LOAD_COMPLETE), 101):
        made.milestone(name, at_s)
    made.fetched_bytes = 1000
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
    fetch = by_name["weights.fetch"]
    assert fetch.parent_id == ROOT.span_id
    assert (fetch.attributes["coldstream.bytes"], fetch.attributes["coldstream.throughput_bytes_per_s"]) == (1000, 500)
    assert by_name["shard.fetch"].parent_id == fetch.span_id
    assert by_name["shard.copy"].links == (SpanContext(ROOT.trace_id, by_name["shard.fetch"].span_id),)
    assert "shard.stage" not in by_name  # its phase was not told


def test_another_engines_phases_are_no_part_of_the_start():
    """A restart after readiness does not stretch the trace."""
    made = ledger()
    made.phase("engine.bind", 200.0, 201.0)
    assert "engine.bind" not in {span.name for span in startup_trace(made, ROOT, None, UnixClock()).spans}


def test_the_first_token_comes_later_with_all_figures():
    """A child of the startup, linked to its request."""
    made = ledger()
    made.milestone(names.FIRST_TOKEN, 106.0)
    request = SpanContext("12" * 16, "34" * 8)
    trace = first_token_trace(made, ROOT, request, UnixClock())
    (span,) = trace.spans
    assert (trace.remote_parent, span.links) == (ROOT, (request,))
    assert (span.attributes["ttft_s"], span.attributes["cold_start_s"]) == (2.0, 6.0)
