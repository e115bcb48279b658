"""The exporter process: `python -P -m app.telemetry.exporter FD PARENT_PID EXPORTER...`.

Takes traces from the server over the socket FD, hands them to OpenTelemetry's SDK, and ends when the server does. A process
of its own: importing the SDK takes half a second, and encoding a batch holds the GIL for longer than a token takes. What a
collector does not take in time waits in the SDK's bounded queue, or is dropped there. The only file that knows the SDK.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points, version

from opentelemetry.context import Context
from opentelemetry.sdk.trace import SpanProcessor, Tracer, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)
from opentelemetry.trace import SpanContext as SdkSpanContext

from app.telemetry.spans import Span, SpanContext, Trace
from streaming.process import die_with_parent
from streaming.wire import Connection, ConnectionClosed

_NICENESS = 19


class ExporterUnusable(Exception):
    """What is asked for cannot be had; one line."""


class Recorder:
    """Plain traces as the SDK's.

    Two tracers share the queues: the startup's trace is worth keeping whatever the sampler thinks of its id.

    Args:
        exporters: Names as OpenTelemetry's packages register them.

    Raises:
        ExporterUnusable: None is registered under one of them.
    """

    def __init__(self, exporters: Sequence[str]) -> None:
        self._processors = [_processor(name) for name in exporters]
        self._ids = _GivenIds()
        self._sampled = self._tracer(None)
        self._always = self._tracer(ALWAYS_ON)

    def record(self, trace: Trace) -> None:
        """Queue a trace's spans."""
        tracer = self._always if trace.always else self._sampled
        contexts: dict[str, SdkSpanContext] = {}
        if trace.remote_parent is not None:
            contexts[""] = _sdk_context(trace.remote_parent, is_remote=True)
        self._ids.trace_id = int(trace.trace_id, 16)
        for span in trace.spans:
            self._ids.span_id = int(span.span_id, 16)
            started = tracer.start_span(
                span.name,
                _below(contexts.get(span.parent_id)),
                SpanKind.SERVER if span.is_server else SpanKind.INTERNAL,
                dict(span.attributes),
                _links(span),
                span.start_ns,
            )
            for event in span.events:
                started.add_event(event.name, dict(event.attributes), event.at_ns)
            if span.error:
                started.set_status(Status(StatusCode.ERROR, span.error))
            contexts[span.span_id] = started.get_span_context()
            started.end(span.end_ns)

    def close(self) -> None:
        """Export what is left, as long as that takes; the server ends this process when it has waited enough."""
        for processor in self._processors:
            processor.shutdown()

    def _tracer(self, sampler: Sampler | None) -> Tracer:
        provider = TracerProvider(sampler=sampler, id_generator=self._ids, shutdown_on_exit=False)
        for processor in self._processors:
            provider.add_span_processor(processor)
        tracer = provider.get_tracer("coldstream", version("coldstream"))
        assert isinstance(tracer, Tracer)  # unless OTEL_SDK_DISABLED, and then this process is not started
        return tracer


class _GivenIds(IdGenerator):
    """Gives the ids that the server has chosen, at random."""

    trace_id = 0
    span_id = 0

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        return self.span_id

    def is_trace_id_random(self) -> bool:
        return True


def _processor(name: str) -> SpanProcessor:
    found = next(iter(entry_points(group="opentelemetry_traces_exporter", name=name)), None)
    if found is None:
        raise ExporterUnusable(f"OTEL_TRACES_EXPORTER: there is no exporter {name!r}: pip install 'coldstream[otel]'")
    return BatchSpanProcessor(found.load()())


def _links(span: Span) -> list[Link]:

    return [Link(_sdk_context(link, is_remote=False)) for link in span.links]


def _below(parent: SdkSpanContext | None) -> Context:

    return Context() if parent is None else set_span_in_context(NonRecordingSpan(parent), Context())


def _sdk_context(context: SpanContext, *, is_remote: bool) -> SdkSpanContext:

    return SdkSpanContext(
        int(context.trace_id, 16),
        int(context.span_id, 16),
        is_remote=is_remote,
        trace_flags=TraceFlags(TraceFlags.SAMPLED if context.is_sampled else TraceFlags.DEFAULT),
        trace_state=TraceState.from_header([context.trace_state]) if context.trace_state else None,
    )


def main(arguments: list[str]) -> int:
    """Export until the server is gone."""
    fd, parent_pid, *exporters = arguments
    die_with_parent(int(parent_pid))
    os.nice(_NICENESS)  # nobody waits for this, and the engine gives way, too
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the server decides
    connection: Connection[Trace] = Connection(socket.socket(fileno=int(fd)), Trace)
    try:
        recorder = Recorder(exporters)
    except ExporterUnusable as error:
        sys.stderr.write(f"coldstream: no traces: {error}\n")
        return 2
    try:
        while True:
            recorder.record(connection.recv()[0])
    except ConnectionClosed:
        recorder.close()
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
