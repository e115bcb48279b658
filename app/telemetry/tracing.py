"""The server's traces: the startup's, once it is over or has failed, and every request's, once it has been answered.

Takes a ledger, the options and the way out; is an observer of requests. A request for text is an HTTP server span with an
inference span in it (OpenTelemetry's GenAI conventions); probes and streamed pieces make none. Knows no SDK.
"""

from __future__ import annotations

from app.telemetry import names
from app.telemetry.export import TraceExport
from app.telemetry.http_requests import HttpRequest
from app.telemetry.ledger import Ledger
from app.telemetry.requests import WatchedRequest
from app.telemetry.spans import (
    Attributes,
    RequestTrace,
    Span,
    SpanContext,
    SpanEvent,
    Trace,
    UnixClock,
    new_span_id,
    new_trace_id,
    parse_traceparent,
)
from app.telemetry.startup_trace import Failure, first_answer_trace, startup_trace
from app.telemetry.trace_options import TraceOptions
from streaming.clock import boottime_s

_LAST_WORDS_S = 2.0
# A request that waits for a ready server has the processor to itself for so long, before an exporter starts.
_FIRST_ANSWER_S = 0.3


class Tracing:
    """One server's.

    Args:
        options: Whether and how.
        export: The way out; used only if traces are exported.
        ledger: Read when the server is ready, and at the first token.
    """

    def __init__(self, options: TraceOptions, export: TraceExport, ledger: Ledger):
        self._options = options
        self._export = export
        self._ledger = ledger
        self._clock = UnixClock()
        parent = options.startup_parent
        self._startup = SpanContext(parent.trace_id if parent else new_trace_id(), new_span_id())

    def startup_ended(self) -> None:
        """The server is ready: hand its startup over, and begin to export."""
        if self._options.is_exported:
            self._clock = UnixClock()
            self._export.put(startup_trace(self._ledger, self._startup, self._options.startup_parent, self._clock))
            self._export.start(delay_s=_FIRST_ANSWER_S)

    def startup_failed(self, kind: str, landed_bytes: int) -> None:
        """The server will never be ready, for a reason of this class: hand over what there was of its startup, now."""
        if self._options.is_exported:
            self._clock = UnixClock()
            failure = Failure(kind, boottime_s(), landed_bytes)
            parent = self._options.startup_parent
            self._export.put(startup_trace(self._ledger, self._startup, parent, self._clock, failure))
            self._export.start(delay_s=0.0)

    def begin(self, traceparent: str, trace_state: str) -> RequestTrace:
        """The trace of a request with these headers, which may be empty."""
        parent = parse_traceparent(traceparent, trace_state) if traceparent else None
        trace_id = parent.trace_id if parent else new_trace_id()
        is_sampled = self._options.sampler(trace_id, parent.is_sampled if parent else None)
        return RequestTrace(SpanContext(trace_id, new_span_id(), is_sampled), parent, self._options.is_exported)

    def observe(self, request: WatchedRequest) -> None:
        """Note a request for text in its trace."""
        trace = request.trace
        if trace is None or not self._options.is_exported:
            return
        if request.is_first_answer:
            links: tuple[SpanContext, ...] = (self._startup,)
            self._export.put(first_answer_trace(self._ledger, self._startup, trace.context, self._clock))
        else:
            links = ()
        trace.spans.append(self._inference(request, trace.context.span_id, links))

    def observe_http(self, request: HttpRequest) -> None:
        """Hand a request's trace over."""
        trace = request.trace
        if trace is None or not (self._options.is_exported and trace.context.is_sampled):
            return
        links = tuple(link for span in trace.spans for link in span.links)
        server = Span(
            name=f"{request.method} {request.route}".strip(),
            span_id=trace.context.span_id,
            is_server=True,
            start_ns=self._clock.ns(request.start_s),
            end_ns=self._clock.ns(request.end_s),
            attributes=_http_attributes(request),
            links=links,
            error=f"HTTP {request.status}" if request.status >= 500 else "",
        )
        spans = (server, *trace.spans)
        self._export.put(Trace(trace_id=trace.context.trace_id, spans=spans, remote_parent=trace.remote_parent))

    def dropped(self) -> int:
        """Traces that could not be handed over."""
        return self._export.dropped

    def close(self) -> None:
        """Wait a little for what is on its way. Blocks."""
        self._export.close(_LAST_WORDS_S)

    def _inference(self, request: WatchedRequest, parent_id: str, links: tuple[SpanContext, ...]) -> Span:
        marks = {
            names.QUEUE_EVENT: request.arrived_s,
            names.READY_EVENT: request.ready_s,
            names.PREFILL_EVENT: request.scheduled_s,
            names.DECODE_EVENT: request.first_token_s,
        }
        return Span(
            name=f"{request.operation} {request.model}",
            span_id=new_span_id(),
            parent_id=parent_id,
            start_ns=self._clock.ns(request.arrived_s),
            end_ns=self._clock.ns(request.ended_s),
            attributes=_inference_attributes(request),
            events=tuple(SpanEvent(name, self._clock.ns(at_s)) for name, at_s in marks.items() if at_s is not None),
            links=links,
            error=request.error or "",
        )


def _http_attributes(request: HttpRequest) -> Attributes:
    attributes: dict[str, str | int | None] = {
        names.HTTP_METHOD: request.method,
        names.HTTP_ROUTE: request.route or None,
        names.HTTP_STATUS: request.status,
        names.URL_PATH: request.path,
        names.URL_SCHEME: request.scheme,
        names.CLIENT_ADDRESS: request.client_address,
        names.ERROR_TYPE: str(request.status) if request.status >= 500 else None,
        names.REQUEST_ID: request.request_id,
    }
    return {name: value for name, value in attributes.items() if value is not None}


def _inference_attributes(request: WatchedRequest) -> Attributes:
    attributes: dict[str, str | int | tuple[str, ...] | None] = {
        names.OPERATION: request.operation,
        names.PROVIDER_NAME: names.PROVIDER,
        names.REQUEST_MODEL: request.model,
        names.RESPONSE_MODEL: request.served_model,
        names.OUTPUT_TOKENS: request.output_tokens,
        names.CACHED_INPUT_TOKENS: request.usage_cached_tokens,
        names.FINISH_REASONS: tuple(request.finish_reasons),
        names.ERROR_TYPE: request.error,
    }
    known = {name: value for name, value in attributes.items() if value is not None}
    return known | {name: value for name, value in request.parameters.items() if value is not None}
