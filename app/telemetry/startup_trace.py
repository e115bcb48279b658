"""The ledger as a trace, from the kernel's start of the process until the server was ready.

Takes a ledger and contexts, gives plain spans; made after the server is ready. Pure but for random span ids. Knows no SDK.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from app.telemetry import names
from app.telemetry.ledger import Ledger
from app.telemetry.spans import Attributes, Span, SpanContext, SpanEvent, Trace, UnixClock, new_span_id
from streaming.messages import ShardTimes

Interval = tuple[float, float]


def startup_trace(ledger: Ledger, root: SpanContext, parent: SpanContext | None, clock: UnixClock) -> Trace:
    """Everything until the server was ready: `root` is the context of the whole, `parent` whose part the start is.

    Phases run side by side, so they are the root's children all, and a shard's way a child of each phase of the weights.
    """
    at_ns = _after_exec(ledger, clock)
    ready_s = ledger.milestones[names.LOAD_COMPLETE]
    whole = Span(
        name=names.STARTUP_SPAN,
        span_id=root.span_id,
        start_ns=at_ns(0.0),
        end_ns=at_ns(ready_s),
        attributes=_attributes(ledger, ready_s),
        events=tuple(SpanEvent(name, at_ns(at_s)) for name, at_s in ledger.milestones.items()),
    )
    spans = [whole]
    for name, (start_s, end_s) in ledger.phases.items():
        if start_s >= ready_s:  # another engine's
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


def first_token_trace(ledger: Ledger, root: SpanContext, request: SpanContext, clock: UnixClock) -> Trace:
    """What comes later: from ready to the first token of any request, whose own trace is linked."""
    at_ns = _after_exec(ledger, clock)
    span = Span(
        name=names.FIRST_TOKEN_SPAN,
        span_id=new_span_id(),
        start_ns=at_ns(ledger.milestones[names.LOAD_COMPLETE]),
        end_ns=at_ns(ledger.milestones[names.FIRST_TOKEN]),
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


def _attributes(ledger: Ledger, ready_s: float) -> Attributes:
    intervals = [(start_s, min(end_s, ready_s)) for start_s, end_s in ledger.phases.values() if start_s < ready_s]
    fetch_s = ledger.durations().get("fetch_s", 0.0)
    return {
        **_figures(ledger),
        **_rate(ledger.fetched_bytes, fetch_s),
        names.UNATTRIBUTED_MS: round(unattributed_s(intervals, ready_s) * 1000, 3),
        names.OVERLAP_RATIO: round(sum(end_s - start_s for start_s, end_s in intervals) / ready_s, 3),
        names.FALLBACK_ATTRIBUTE: tuple(ledger.fallback_counts()),
    }


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
    """Three spans per shard, the later ones linked to its fetch."""
    for shard in shards:
        links: tuple[SpanContext, ...] = ()
        for stage, name in names.SHARD_SPANS.items():
            phase = phases.get(f"weights.{stage}")
            if phase is None:
                continue
            start_s, end_s = getattr(shard, stage)
            span = Span(
                name=name,
                span_id=new_span_id(),
                parent_id=phase.span_id,
                start_ns=clock.ns(start_s),
                end_ns=clock.ns(end_s),
                attributes={names.SHARD: shard.shard, **_rate(shard.nbytes, end_s - start_s)},
                links=links,
            )
            yield span
            links = links or (SpanContext(trace_id, span.span_id),)
