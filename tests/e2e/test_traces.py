"""Traces of a whole server through a real collector: its startup, and the requests after it."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import httpx
import psutil
import pytest

from streaming.clock import boottime_s, exec_time_s
from tests.coldstream import Server, runs, serving, wait_for
from tests.collector import black_hole, collector
from tests.unit.test_metrics import samples
from tools.blob_server import BlobServer

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
LINGER = ("--fail-linger", "20")
PHASES = {
    "interpreter",
    "server.settings",
    "server.bind",
    "server.import",
    "server.tokenizer",
    "loader.spawn",
    "source.headers",
    "plan",
    "arena",
    "weights.fetch",
    "weights.stage",
    "weights.copy",
    "engine.exec",
    "engine.import",
    "engine.bind",
    "engine.cache",
    "engine.first_pass",
    "ready",
}


@pytest.fixture(scope="module")
def running_collector(tmp_path_factory):
    """One for the file; every test has trace ids of its own."""
    with collector(tmp_path_factory.mktemp("rotel") / "log") as running:
        yield running


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_startup_is_a_trace_from_exec_to_ready_that_survives_sampling(
    demo_model_dir, tmp_path, running_collector, protocol
):
    """Child of TRACEPARENT, every phase and shard in it; unsampled requests leave none, sampled callers' do."""
    sink = running_collector.sink
    sink.spans.clear()
    environ = running_collector.environment(protocol) | {
        "TRACEPARENT": f"00-{TRACE_ID}-{SPAN_ID}-00",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0",
        "OTEL_RESOURCE_ATTRIBUTES": "k8s.pod.name=p-1",
    }
    with serving(str(demo_model_dir), log_path=tmp_path / "log", environ=environ) as server:
        exec_ns = time.time_ns() - round((boottime_s() - exec_time_s(server.pid)) * 1e9)
        server.wait_ready()
        server.complete("Hello", max_tokens=2)
        caller = "0af7651916cd43dd8448eb211c80319c"
        body = {"model": "m", "prompt": "Hi", "max_tokens": 3, "stream": True}
        headers = {"traceparent": f"00-{caller}-b7ad6b7169203331-01"}
        server.client.post("/v1/completions", json=body, headers=headers)
        ledger = server.client.get("/startupz").json()
        sink.wait_for("text_completion m")
        sink.wait_for("first_answer")
    root = sink.wait_for("startup")
    _check_root(root, exec_ns, ledger)
    _check_children(sink, root)
    _check_first_answer(sink, root, ledger)
    (http,) = sink.named("POST /v1/completions")
    (inference,) = sink.named("text_completion m")
    assert (http.trace_id, http.parent_id, http.kind) == (caller, "b7ad6b7169203331", 2)
    assert (inference.trace_id, inference.parent_id, inference.kind) == (caller, http.span_id, 1)
    assert {span.trace_id for span in sink.spans} == {TRACE_ID, caller}


def _check_root(root, exec_ns, ledger):
    """The kernel's start of the process is the trace's, within two of its grains; little of it is unexplained."""
    assert (root.trace_id, root.parent_id) == (TRACE_ID, SPAN_ID)
    assert abs(root.start_ns - exec_ns) <= 20e6
    wall_ms = (root.end_ns - root.start_ns) / 1e6
    assert root.attributes["unattributed_ms"] < 0.05 * wall_ms
    assert root.attributes["overlap_ratio"] > 1
    assert root.attributes["coldstream.unverified_bytes"] == root.attributes["coldstream.bytes"] > 200e6
    assert root.attributes["coldstream.verified_bytes"] == 0
    assert root.resource["service.name"] == "coldstream"
    assert root.resource["k8s.pod.name"] == "p-1"
    known = {name: at_s for name, at_s in ledger["milestones"].items() if name != "first_answer_time"}
    assert set(root.events) == set(known)
    for name, at_s in known.items():
        assert root.events[name] == pytest.approx(root.start_ns + at_s * 1e9, abs=1e6)
        assert root.attributes[name] == pytest.approx(at_s, abs=0.001)


def _check_children(sink, root):
    children = {span.name: span for span in sink.spans if span.parent_id == root.span_id}
    assert set(children) >= PHASES
    assert all(
        root.start_ns <= span.start_ns <= span.end_ns <= root.end_ns
        for span in children.values()
        if span.name != "first_answer"
    )
    assert children["interpreter"].start_ns == root.start_ns
    for stage in ("fetch", "stage", "copy"):
        whole = children[f"weights.{stage}"]
        shards = sink.named(f"shard.{stage}")
        assert [span.parent_id for span in shards] == [whole.span_id] * 2
        assert sum(span.attributes["coldstream.bytes"] for span in shards) == whole.attributes["coldstream.bytes"]
        assert all(whole.start_ns <= span.start_ns <= span.end_ns <= whole.end_ns for span in shards)
    for span in sink.named("shard.fetch"):
        assert 0 < len(span.marks) == min(16, span.attributes["coldstream.ranges"])
        assert all(0 <= mark["coldstream.range.start"] < mark["coldstream.range.end"] for mark in span.marks)
    fetched = {span.attributes["coldstream.shard"]: span.span_id for span in sink.named("shard.fetch")}
    for span in sink.named("shard.copy"):
        assert span.links == [(TRACE_ID, fetched[span.attributes["coldstream.shard"]])]


def _check_first_answer(sink, root, ledger):
    """It is known only after the trace was sent: a span of its own, with the rest of the case study's figures."""
    first = sink.named("first_answer")[-1]
    assert (first.trace_id, first.parent_id) == (root.trace_id, root.span_id)
    assert len(first.links) == 1
    figures = {**ledger["milestones"], **ledger["durations"]}
    assert {name: first.attributes[name] for name in figures} == pytest.approx(figures, abs=0.001)


def test_every_request_is_a_trace_and_probes_and_pieces_are_none(demo_model_dir, tmp_path, running_collector):
    """The first one is linked to the startup; queue, prefill and decode are marked; a failure is an error."""
    sink = running_collector.sink
    sink.spans.clear()
    flags = ("--otlp-traces-endpoint", running_collector.grpc_endpoint)
    with serving(
        str(demo_model_dir), *flags, log_path=tmp_path / "log", environ={"OTEL_BSP_SCHEDULE_DELAY": "100"}
    ) as server:
        server.wait_ready()
        messages = [{"role": "user", "content": "Hi"}]
        body = {"model": "m", "messages": messages, "max_tokens": 5, "temperature": 0, "stream": True}
        server.client.post("/v1/chat/completions", json=body)
        server.client.post("/v1/completions", json={"model": "unknown", "prompt": "x"})
        server.client.get("/metrics")
        assert (
            server.client.post("/v1/completions", json={"model": "m", "prompt": "x", "max_tokens": 1}).status_code
            == 200
        )
        inference = sink.wait_for("chat m")
        sink.wait_for("text_completion m")
        log = server.log()
    root = sink.wait_for("startup")
    first, refused, second = sorted(
        (span for span in sink.spans if span.name.startswith("POST")), key=lambda span: span.start_ns
    )
    assert [span.attributes["http.response.status_code"] for span in (first, refused, second)] == [200, 404, 200]
    assert len({first.trace_id, refused.trace_id, second.trace_id, root.trace_id}) == 4
    assert first.links == inference.links == [(root.trace_id, root.span_id)]
    assert sink.named("first_answer")[0].links == [(first.trace_id, first.span_id)]
    assert second.links == []
    assert inference.attributes["gen_ai.usage.output_tokens"] == 5
    assert inference.attributes["gen_ai.response.finish_reasons"] == ["length"]
    assert inference.attributes["gen_ai.request.stream"] is True
    marks = [inference.events[name] for name in ("queue", "prefill", "decode")]
    assert [inference.start_ns, *marks, inference.end_ns] == sorted([inference.start_ns, *marks, inference.end_ns])
    assert not [span.name for span in sink.spans if "metrics" in span.name or "health" in span.name]
    assert f'"trace_id": "{first.trace_id}"' in log  # of the line that tells of the first token


def test_a_start_that_fails_is_a_trace_without_a_secret(tmp_path, running_collector):
    """An error of the reason's class, with the phases so far; neither URI nor token in it."""
    sink = running_collector.sink
    sink.spans.clear()
    environ = running_collector.environment("http/protobuf") | {"AZURE_STORAGE_SAS_TOKEN": "sig=c2VjcmV0"}
    with (
        BlobServer(tmp_path) as source,
        serving(f"{source.url}/nobody", *LINGER, log_path=tmp_path / "log", environ=environ) as server,
    ):
        root = sink.wait_for("startup")
        assert wait_for(lambda: server.health()[1]["state"] == "failed")
    assert root.is_error
    assert root.attributes["error.type"] == root.status_message == "BlobNotFound"
    assert "model_load_complete" not in root.attributes
    children = {span.name for span in sink.spans if span.parent_id == root.span_id}
    assert children >= {"interpreter", "server.settings", "server.bind", "loader.spawn"}
    assert "c2VjcmV0" not in repr(sink.spans)
    assert "nobody" not in repr(sink.spans)


def test_a_start_that_fails_does_not_wait_for_a_dead_collector(tmp_path):
    """The reason is on standard error, and two seconds later the process is gone."""
    with black_hole() as endpoint, BlobServer(tmp_path) as source:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
        with serving(f"{source.url}/nobody", log_path=tmp_path / "log", environ=environ) as server:
            wait_for(lambda: "BlobNotFound: " in server.log(), 60)
            said_s = time.monotonic()
            _, status = os.waitpid(server.pid, 0)
            assert time.monotonic() - said_s < 4
    assert os.waitstatus_to_exitcode(status) == 3


def test_a_signal_while_loading_ends_the_server_at_once_and_leaves_no_trace(demo_model_dir, tmp_path):
    """Whoever stops a server that is not ready does not wait for a collector."""
    with black_hole() as endpoint, BlobServer(demo_model_dir, bytes_per_s=5e6) as source:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
        with serving(source.url, log_path=tmp_path / "log", environ=environ) as server:
            wait_for(lambda: _state(server) == "loading", 60)
            assert not any(runs(child, "app.telemetry.exporter") for child in server.family())
            asked_s = time.monotonic()
            os.kill(server.pid, signal.SIGTERM)
            _, status = os.waitpid(server.pid, 0)
            assert time.monotonic() - asked_s < 2
    assert os.waitstatus_to_exitcode(status) == 0


def _state(server: Server) -> str | None:
    with contextlib.suppress(httpx.TransportError):
        return str(server.health()[1]["state"])
    return None


def test_shards_that_go_to_disk_are_spans(pushed_small, azure_environment, tmp_path, running_collector):
    """host-staging downloads one after the other, and each has its fetch."""
    sink = running_collector.sink
    sink.spans.clear()
    environ = running_collector.environment("grpc") | azure_environment | {"TMPDIR": str(tmp_path)}
    flags = ("--load-strategy", "host-staging")
    with serving(pushed_small, *flags, log_path=tmp_path / "log", environ=environ) as server:
        server.wait_ready()
        root = sink.wait_for("startup")
    (whole,) = sink.named("weights.fetch")
    shards = sink.named("shard.fetch")
    assert [span.parent_id for span in shards] == [whole.span_id] * 2
    assert sum(span.attributes["coldstream.bytes"] for span in shards) == root.attributes["coldstream.bytes"] > 50e6
    assert shards[0].end_ns <= shards[1].start_ns
    assert sink.named("shard.copy") == []


def test_a_collector_that_never_answers_costs_neither_answers_nor_memory(tiny_model, tmp_path):
    """Requests are served, traces are dropped, the exporter stays small, and the server ends in time."""
    with black_hole() as endpoint:
        environ = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_BSP_MAX_QUEUE_SIZE": "64",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "16",
        }
        with serving(str(tiny_model.folder), log_path=tmp_path / "log", environ=environ) as server:
            server.wait_ready()
            server.complete("Hello", max_tokens=1)
            exporter = server.child("app.telemetry.exporter")
            wait_for(lambda: len(exporter.net_connections()) > 0)
            before_bytes = _used_bytes(exporter)
            for _ in range(400):
                server.client.get("/v1/models")
            grown_bytes = _used_bytes(exporter) - before_bytes
            assert samples(server.client.get("/metrics").text)["coldstream_state"]["state=ready"] == 1
            ended_s = time.monotonic()
        assert time.monotonic() - ended_s < 6
    assert grown_bytes < 16 << 20


def _used_bytes(process: psutil.Process) -> int:
    return int(process.memory_info().rss)
