"""Traces as plain values: what the server hands to the exporter, and how their contexts travel in headers.

W3C trace context (`traceparent`, `tracestate`). Knows no SDK and no exporter.
"""

from __future__ import annotations

import os
import re
import time

import msgspec

from streaming.clock import boottime_s

Value = str | bool | int | float | tuple[str, ...]
Attributes = dict[str, Value]

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class SpanContext(msgspec.Struct, frozen=True):
    """Where a span is in the world: its trace and itself in hexadecimal digits."""

    trace_id: str
    span_id: str
    is_sampled: bool = True
    trace_state: str = ""


class SpanEvent(msgspec.Struct, frozen=True):
    """A moment in a span."""

    name: str
    at_ns: int
    attributes: Attributes = {}


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A span that has ended; times are Unix nanoseconds. Without a `parent_id` it is a child of the trace's remote parent."""

    name: str
    span_id: str
    parent_id: str = ""
    is_server: bool = False
    start_ns: int
    end_ns: int
    attributes: Attributes = {}
    events: tuple[SpanEvent, ...] = ()
    links: tuple[SpanContext, ...] = ()
    error: str = ""


class Trace(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Spans of one trace, parents first. One that is `always` kept is not left to the sampler."""

    trace_id: str
    spans: tuple[Span, ...]
    remote_parent: SpanContext | None = None
    always: bool = False


class RequestTrace(msgspec.Struct):
    """The trace of one request while it runs; `spans` are those that have ended."""

    context: SpanContext
    remote_parent: SpanContext | None
    is_exported: bool
    spans: list[Span] = []

    @property
    def exemplar(self) -> dict[str, str] | None:
        """What leads from a metric to this trace; None where nobody would find it."""
        if not (self.is_exported and self.context.is_sampled):
            return None
        return {"trace_id": self.context.trace_id, "span_id": self.context.span_id}


class UnixClock:
    """CLOCK_BOOTTIME to Unix time, as of the moment this is made."""

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - round(boottime_s() * 1e9)

    def ns(self, boot_s: float) -> int:
        """Unix nanoseconds."""
        return self._offset_ns + round(boot_s * 1e9)


def new_trace_id() -> str:
    """Random; `secrets` would cost the start 5 ms of imports."""
    return os.urandom(16).hex()


def new_span_id() -> str:
    """Random."""
    return os.urandom(8).hex()


def parse_traceparent(header: str, trace_state: str = "") -> SpanContext | None:
    """The context that a header names; None for what is none."""
    found = _TRACEPARENT.fullmatch(header.strip())
    if found is None:
        return None
    version, trace_id, span_id, flags, rest = found.groups()
    is_broken = version == "ff" or (version == "00" and rest)
    if is_broken or not int(trace_id, 16) or not int(span_id, 16):
        return None
    return SpanContext(trace_id, span_id, bool(int(flags, 16) & 1), trace_state)
