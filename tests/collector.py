"""A real OpenTelemetry collector between a server and a test: `rotel`, and behind it a sink that keeps what arrives."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import rotel
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.coldstream import wait_for
from tools.child import running
from tools.ports import free_port


@dataclass(frozen=True)
class ReceivedSpan:
    """A span as it arrived; ids are hexadecimal digits, times Unix nanoseconds.

    `events` are times by name, `marks` the attributes of each event that has any.
    """

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    events: dict[str, int]
    marks: list[dict[str, Any]]
    links: list[tuple[str, str]]
    is_error: bool
    status_message: str
    resource: dict[str, Any]


class Sink:
    """Spans that have arrived over OTLP/HTTP."""

    def __init__(self) -> None:
        self.spans: list[ReceivedSpan] = []

    def named(self, name: str) -> list[ReceivedSpan]:
        """Spans of this name."""
        return [span for span in self.spans if span.name == name]

    def wait_for(self, name: str, count: int = 1) -> ReceivedSpan:
        """The newest span of this name, once so many have arrived."""
        wait_for(lambda: len(self.named(name)) >= count, 20)
        return self.named(name)[-1]

    def take(self, body: bytes) -> None:
        """Keep the spans of an export request."""
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = _attributes(group.resource.attributes)
            for scope in group.scope_spans:
                self.spans += [_received(span, resource) for span in scope.spans]


@dataclass(frozen=True)
class Collector:
    """Where a running collector listens."""

    grpc_endpoint: str
    http_endpoint: str
    sink: Sink

    def environment(self, protocol: str) -> dict[str, str]:
        """The variables that lead a server's traces there, soon."""
        endpoint = self.grpc_endpoint if protocol == "grpc" else self.http_endpoint
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }


@contextlib.contextmanager
def collector(log_path: Path) -> Iterator[Collector]:
    """Run rotel and a sink for the length of a `with` block."""
    grpc_port, http_port = free_port(), free_port()
    with sink() as (kept, sink_port):
        command = [str(Path(rotel.__file__).parent / "rotel-agent"), "start", "--batch-timeout", "100ms"]
        command += ["--otlp-grpc-endpoint", f"127.0.0.1:{grpc_port}", "--otlp-http-endpoint", f"127.0.0.1:{http_port}"]
        command += ["--exporter", "otlp", "--otlp-exporter-endpoint", f"http://127.0.0.1:{sink_port}"]
        command += ["--otlp-exporter-protocol", "http"]
        with running(command, log_path=log_path):
            for port in (grpc_port, http_port):
                wait_for(lambda port=port: _listens(port))
            yield Collector(f"http://127.0.0.1:{grpc_port}", f"http://127.0.0.1:{http_port}", kept)


@contextlib.contextmanager
def sink() -> Iterator[tuple[Sink, int]]:
    """A sink and its port."""
    kept = Sink()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                import gzip

                body = gzip.decompress(body)
            kept.take(body)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield kept, server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def black_hole() -> Iterator[str]:
    """An endpoint that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    time.sleep(0.02)
    return False


def _received(span: Any, resource: dict[str, Any]) -> ReceivedSpan:
    return ReceivedSpan(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        kind=span.kind,
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=_attributes(span.attributes),
        events={event.name: event.time_unix_nano for event in span.events},
        marks=[_attributes(event.attributes) for event in span.events if event.attributes],
        links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
        is_error=span.status.code == 2,
        status_message=span.status.message,
        resource=resource,
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind)
