"""The ledger as a trace, from the kernel's start of the process until the server was ready, or had failed.

Takes a ledger and contexts, gives plain spans; made when the start is over. Pure but for random span ids. Knows no SDK.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from app.telemetry import names
from app.telemetry.ledger import Ledger
from app.telemetry.spans import Attributes, Span, SpanContext, SpanEvent, Trace, UnixClock, new_span_id
from streaming.messages import RangeSummary, ShardTimes

Interval = tuple[float, float]


class Failure(msgspec.Struct, frozen=True):
    """Why and when (seconds of CLOCK_BOOTTIME) a start failed, as the class of its error, and the bytes that had landed."""

    kind: str
    at_s: float
    landed_bytes: int


def startup_trace(
    ledger: Ledger, root: SpanContext, parent: SpanContext | None, clock: UnixClock, failure: Failure | None = None
) -> Trace:
    """Everything until the server was ready: `root` is the context of the whole, `parent` whose part the start is.

    Phases run side by side, so they are the root's children all, and a shard's way a child of each phase of the weights.
    Of a start that failed, the phases that had ended until then.
    """
    at_ns = _after_exec(ledger, clock)
    over_s = failure.at_s - ledger.exec_s if failure else ledger.milestones[names.READY]
    whole = Span(
        name=names.STARTUP_SPAN,
        span_id=root.span_id,
        start_ns=at_ns(0.0),
        end_ns=at_ns(over_s),
        attributes=_attributes(ledger, over_s) | (_failed(failure) if failure else {}),
        events=tuple(SpanEvent(name, at_ns(at_s)) for name, at_s in ledger.milestones.items()),
        error=failure.kind if failure else "",
    )
    spans = [whole]
    for name, (start_s, end_s) in ledger.phases.items():
        if start_s >= over_s:  # another engine's
            continue
        phase = Span(
            name=name,
            span_id=new_span_id(),
            parent_id=root.span_id,
            start_ns=at_ns(start_s),
            end_ns=at_ns(end_s),
            attributes=_rate(ledger.fetched_bytes, end_s - start_s) if _moves_weights(name) else {},
        )
        spans.append(phase)
    by_name = {span.name: span for span in spans}
    spans += _shards(ledger.shards, by_name, root.trace_id, clock)
    return Trace(trace_id=root.trace_id, spans=tuple(spans), remote_parent=parent, always=True)


def first_answer_trace(ledger: Ledger, root: SpanContext, request: SpanContext, clock: UnixClock) -> Trace:
    """What comes later: from ready to the first token of any request, whose own trace is linked."""
    at_ns = _after_exec(ledger, clock)
    span = Span(
        name=names.FIRST_ANSWER_SPAN,
        span_id=new_span_id(),
        start_ns=at_ns(ledger.milestones[names.READY]),
        end_ns=at_ns(ledger.milestones[names.FIRST_ANSWER]),
        attributes=_figures(ledger),
        links=(request,),
    )
    return Trace(trace_id=root.trace_id, spans=(span,), remote_parent=root, always=True)


def unattributed_s(intervals: Iterable[Interval], end_s: float) -> float:
    """How much of `[0, end_s)` no interval covers."""
    left_s, reached_s = 0.0, 0.0
    for start_s, stop_s in sorted(intervals):
        left_s += max(0.0, min(start_s, end_s) - reached_s)
        reached_s = max(reached_s, min(stop_s, end_s))
    return left_s + end_s - reached_s


def _after_exec(ledger: Ledger, clock: UnixClock) -> Callable[[float], int]:
    """Seconds since exec as Unix nanoseconds."""
    return lambda at_s: clock.ns(ledger.exec_s + at_s)


def _attributes(ledger: Ledger, over_s: float) -> Attributes:
    intervals = [(start_s, min(end_s, over_s)) for start_s, end_s in ledger.phases.values() if start_s < over_s]
    fetch_s = ledger.durations().get("fetch_s", 0.0)
    return {
        **_figures(ledger),
        **_rate(ledger.fetched_bytes, fetch_s),
        names.UNATTRIBUTED_MS: round(unattributed_s(intervals, over_s) * 1000, 3),
        names.OVERLAP_RATIO: round(sum(end_s - start_s for start_s, end_s in intervals) / over_s, 3),
        names.FALLBACK_ATTRIBUTE: tuple(ledger.fallback_counts()),
        **{names.RESTARTS_ATTRIBUTE.format(process): count for process, count in ledger.restarts.items()},
        names.RETRIES_ATTRIBUTE: sum(ledger.counters.retries.values()),
        names.VERIFIED_ATTRIBUTE: ledger.counters.verified_bytes,
        names.UNVERIFIED_ATTRIBUTE: ledger.counters.unverified_bytes,
        **{names.DEVICE_USED_ATTRIBUTE.format(at): used for at, used in ledger.device_used_bytes.items()},
    }


def _failed(failure: Failure) -> Attributes:
    """Never the reason's own words: they may name what is nobody else's business."""
    return {names.ERROR_TYPE: failure.kind, names.BYTES: failure.landed_bytes}


def _figures(ledger: Ledger) -> Attributes:
    """Milestones and durations under their own names, in seconds."""
    return {**ledger.milestones, **ledger.durations()}


def _rate(nbytes: int, seconds: float) -> Attributes:
    return {names.BYTES: nbytes, names.THROUGHPUT: round(nbytes / seconds) if seconds > 0 else 0}


def _moves_weights(phase: str) -> bool:
    return phase in {f"weights.{stage}" for stage in names.SHARD_SPANS}


def _shards(
    shards: Iterable[ShardTimes], phases: Mapping[str, Span], trace_id: str, clock: UnixClock
) -> Iterator[Span]:
    """Up to three spans per shard, the later ones linked to its fetch, which has the slowest reads as events."""
    for shard in shards:
        links: tuple[SpanContext, ...] = ()
        for stage, name in names.SHARD_SPANS.items():
            phase = phases.get(f"weights.{stage}")
            interval = getattr(shard, stage)
            if phase is None or interval is None:
                continue
            start_s, end_s = interval
            span = Span(
                name=name,
                span_id=new_span_id(),
                parent_id=phase.span_id,
                start_ns=clock.ns(start_s),
                end_ns=clock.ns(end_s),
                attributes={names.SHARD: shard.shard, **_rate(shard.nbytes, end_s - start_s)},
                links=links,
            )
            if stage == "fetch" and shard.ranges is not None:
                span = _with_ranges(span, shard.ranges, clock)
            yield span
            links = links or (SpanContext(trace_id, span.span_id),)


def _with_ranges(span: Span, ranges: RangeSummary, clock: UnixClock) -> Span:
    """Events stand where the slowest reads began, in order of time."""
    events = tuple(
        SpanEvent(
            names.RANGE_EVENT,
            clock.ns(found.start_s),
            {
                names.RANGE_START: found.start,
                names.RANGE_END: found.end,
                names.RANGE_DURATION_S: round(found.end_s - found.start_s, 6),
            },
        )
        for found in sorted(ranges.slowest, key=lambda found: found.start_s)
    )
    attributes = {**span.attributes, names.RANGE_COUNT: sum(ranges.counts)}
    return msgspec.structs.replace(span, attributes=attributes, events=events)
