"""Contexts in headers, the sampler that must agree with the SDK's, and what the environment asks for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.context import Context
from opentelemetry.sdk.trace import sampling as sdk
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from app.telemetry.sampling import sampler
from app.telemetry.spans import UnixClock, new_span_id, new_trace_id, parse_traceparent
from app.telemetry.trace_options import trace_options
from streaming.clock import boottime_s

HEADER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
_hex = "0123456789abcdef"
headers = st.one_of(
    st.text(max_size=60),
    st.builds(
        "-".join,
        st.tuples(
            st.sampled_from(["00", "01", "ff", "0"]),
            st.text(_hex, min_size=31, max_size=32) | st.just("0" * 32),
            st.text(_hex, min_size=16, max_size=17) | st.just("0" * 16),
            st.sampled_from(["00", "01", "03", "zz"]),
        ),
    ),
)


def of_sdk(header: str):
    """What OpenTelemetry's own propagator makes of a header."""
    found = TraceContextTextMapPropagator().extract({"traceparent": header}, Context())
    from opentelemetry.trace import get_current_span

    context = get_current_span(found).get_span_context()
    if not context.is_valid:
        return None
    return f"{context.trace_id:032x}", f"{context.span_id:016x}", context.trace_flags.sampled


@given(headers)
def test_a_traceparent_means_what_the_sdk_takes_it_for(header):
    """Valid ones and broken ones alike."""
    ours = parse_traceparent(header)
    assert (ours and (ours.trace_id, ours.span_id, ours.is_sampled)) == of_sdk(header)


@pytest.mark.parametrize("suffix", ["", "-what-comes-later"])
def test_later_versions_may_say_more(suffix):
    """Version 00 has four fields, a later one at least these."""
    assert (parse_traceparent(HEADER + suffix) is None) == bool(suffix)
    assert parse_traceparent("cc" + HEADER[2:] + suffix) is not None


SAMPLERS = ["always_on", "always_off", "traceidratio", "parentbased_always_on", "parentbased_always_off"]
SAMPLERS += ["parentbased_traceidratio", "", "unheard_of"]


@given(
    name=st.sampled_from(SAMPLERS),
    argument=st.sampled_from(["0", "0.25", "1", "", "half"]),
    trace_id=st.integers(1, 2**128 - 1),
    parent=st.none() | st.booleans(),
)
def test_the_sampler_decides_as_the_sdks(name, argument, trace_id, parent):
    """An exemplar leads to a trace that is kept, and to no other."""
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("OTEL_TRACES_SAMPLER", name) if name else environ.delenv("OTEL_TRACES_SAMPLER", raising=False)
        environ.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
        theirs = sdk._get_from_env_or_default()
    context = Context()
    if parent is not None:
        remote = SpanContext(trace_id, 1, is_remote=True, trace_flags=TraceFlags(int(parent)))
        context = set_span_in_context(NonRecordingSpan(remote), context)
    expected = theirs.should_sample(context, trace_id, "span").decision.is_sampled()
    assert sampler(name, argument)(f"{trace_id:032x}", parent) is expected


def test_ids_are_new_each_time():
    """Hexadecimal, of their width, and never the same."""
    assert len({new_trace_id() for _ in range(100)}) == len({new_span_id() for _ in range(100)}) == 100
    assert (len(new_trace_id()), len(new_span_id())) == (32, 16)


def test_the_clocks_agree():
    """What is now since boot is now in Unix time."""
    import time

    assert abs(UnixClock().ns(boottime_s()) - time.time_ns()) < 5e6


@pytest.mark.parametrize(
    ("environ", "exporters"),
    [
        ({}, ()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, ("otlp_proto_grpc",)),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, ("otlp_proto_grpc",)),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, ("otlp_proto_http",)),
        (
            {
                "OTEL_TRACES_EXPORTER": "console, otlp",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            },
            ("console", "otlp_proto_http"),
        ),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, ()),
        ({"OTEL_SDK_DISABLED": "TRUE", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, ()),
    ],
)
def test_traces_are_exported_where_somebody_says_where_to(environ, exporters):
    """By OpenTelemetry's variables, and to no collector that nobody has named."""
    assert trace_options(environ, "").exporters == exporters


def test_the_flag_names_the_endpoint_and_the_service_has_a_name():
    """A flag wins over the variable; what names the service otherwise is left alone."""
    options = trace_options({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://a", "TRACEPARENT": HEADER}, "http://b")
    assert options.exporters == ("otlp_proto_grpc",)
    assert options.exporter_environ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] == "http://b"
    assert options.exporter_environ["OTEL_SERVICE_NAME"] == "coldstream"
    assert options.startup_parent is not None
    assert options.startup_parent.span_id == "00f067aa0ba902b7"
    for name, value in (("OTEL_SERVICE_NAME", "mine"), ("OTEL_RESOURCE_ATTRIBUTES", "service.name=mine")):
        assert trace_options({name: value}, "").exporter_environ == {name: value}
