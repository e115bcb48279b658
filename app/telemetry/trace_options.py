"""Whether traces are exported and how, out of the environment as OpenTelemetry names it.

Takes the environment and the endpoint that was configured; gives the exporter's environment. Everything else that is
named OTEL_... is read by the SDK in the exporter itself. Unlike the SDK, nothing is exported unless somebody names an
exporter or an endpoint: most clusters have no collector on localhost. Knows no SDK.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from app.telemetry.sampling import Sampler, sampler
from app.telemetry.spans import SpanContext, parse_traceparent

_EXPORTER = "OTEL_TRACES_EXPORTER"
_TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", _TRACES_ENDPOINT)
_PROTOCOL_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOLS = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}
_SERVICE_NAME = "OTEL_SERVICE_NAME"


@dataclass(frozen=True)
class TraceOptions:
    """How traces are made. `exporters` are names as OpenTelemetry's packages register them; without any, none are."""

    exporters: tuple[str, ...]
    exporter_environ: Mapping[str, str]
    sampler: Sampler
    startup_parent: SpanContext | None

    @property
    def is_exported(self) -> bool:
        """Whether any trace leaves this process."""
        return bool(self.exporters)


def trace_options(environ: Mapping[str, str], endpoint: str) -> TraceOptions:
    """What the environment asks for; `endpoint` (may be empty) wins over its traces endpoint."""
    environ = dict(environ) | ({_TRACES_ENDPOINT: endpoint} if endpoint else {})
    named = {} if _names_service(environ) else {_SERVICE_NAME: "coldstream"}
    return TraceOptions(
        exporters=_exporters(environ),
        exporter_environ=environ | named,
        sampler=sampler(environ.get("OTEL_TRACES_SAMPLER", ""), environ.get("OTEL_TRACES_SAMPLER_ARG", "")),
        startup_parent=parse_traceparent(environ.get("TRACEPARENT", ""), environ.get("TRACESTATE", "")),
    )


def _exporters(environ: Mapping[str, str]) -> tuple[str, ...]:
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ()
    asked = environ.get(_EXPORTER) or ("otlp" if any(map(environ.get, _ENDPOINTS)) else "none")
    protocol = next(filter(None, map(environ.get, _PROTOCOL_VARIABLES)), "grpc").strip()
    names = [name.strip() for name in asked.split(",")]
    return tuple(
        _PROTOCOLS.get(protocol, protocol) if name == "otlp" else name for name in names if name not in ("", "none")
    )


def _names_service(environ: Mapping[str, str]) -> bool:
    return bool(environ.get(_SERVICE_NAME)) or "service.name=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
