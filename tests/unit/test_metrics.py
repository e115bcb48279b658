"""/metrics: every name of the list gets a value, and requests end up in the conventions' histograms."""

from __future__ import annotations

import asyncio
import itertools
import re
import subprocess
import sys
from types import SimpleNamespace

import msgspec
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from app.lifecycle import Lifecycle, State
from app.messages import DeviceUse, EngineStats
from app.telemetry import names
from app.telemetry.http_requests import HttpRequest
from app.telemetry.metrics import Metrics
from app.telemetry.requests import WatchedRequest
from streaming.clock import boottime_s
from streaming.counters import FetchCounters
from streaming.messages import Chunk, ShardTimes
from streaming.progress import Progress
from streaming.timings import Timings
from tests.unit.scripted_engine import HANG, serve

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
# Here an engine's report is scripted; tests/gpu has a real one's, tests/e2e everything else.
ONLY_A_GPU_CAN = {
    metric.name
    for metric in (
        names.DEVICE_USED,
        names.DEVICE_PEAK,
        names.DEVICE_TOTAL,
        names.DEVICE_ALLOCATED,
        names.DEVICE_RESERVED,
        names.DEVICE_RETRIES,
        names.DEVICE_FAILURES,
        names.STARTUP_DEVICE_USED,
    )
}


def samples(text: str) -> dict[str, dict[str, float]]:
    """Values by name, then by labels as they are written."""
    found: dict[str, dict[str, float]] = {}
    for family in parse(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def loading() -> Lifecycle:
    """A third of the bytes has landed within a second."""
    lifecycle = Lifecycle()
    lifecycle.advance(State.LOADING, "loading")
    lifecycle.progress = Progress(3000, start_s=boottime_s() - 1)
    lifecycle.progress.add(1000, boottime_s())
    return lifecycle


def read_shard(name: str, seconds: list[float]) -> ShardTimes:
    """A shard of reads that took so long."""
    timings = Timings()
    for index, each in enumerate(seconds):
        timings.fetched(Chunk(chunk_id=index, shard=name, start=index, end=index + 1, segments=()), 0.0, each)
        timings.taken(name, each, each)
    (times,) = timings.shards()
    return times


SHARDS = (read_shard("a", [0.01, 0.02]), read_shard("b", [0.02, 99.0]), ShardTimes(shard="c", nbytes=1, fetch=(0, 1)))


def busy_service():
    """A service in which everything that is counted has happened."""
    served = serve(lifecycle=loading())
    service = served.service
    service.ledger.phase("engine.import", 1.0, 2.5)
    for at_s, milestone in enumerate(
        [names.FETCH_START, names.FETCH_END, names.STAGING_COMPLETE, names.LOAD_COMPLETE, names.FIRST_TOKEN], start=1
    ):
        service.ledger.milestone(milestone, float(at_s))
    service.ledger.fallback("host-arena", "no permission")
    service.ledger.restarts["engine"] += 1
    service.waiting_room.held += 1
    service.waiting_room.refused["timeout"] += 1
    service.ledger.device_used_bytes = {"weights_landed": 30, "ready": 40}
    service.ledger.shards = SHARDS
    service.ledger.counters = FetchCounters(
        retries={"503": 2},
        hedges=3,
        hedges_won=2,
        wasted_bytes=100,
        throttles=1,
        verified_bytes=5,
        unverified_bytes=6,
        mismatches=1,
        cache_hit_bytes=3,
        cache_miss_bytes=4,
    )
    service.active_requests["POST", "http"] += 1
    device = DeviceUse(
        total_bytes=80,
        used_bytes=40,
        peak_bytes=60,
        allocated_bytes=10,
        reserved_bytes=20,
        allocation_retries=3,
        allocation_failures=2,
    )
    service.load.update(EngineStats(running=2, waiting=1, used_blocks=3, num_blocks=4, preemptions=5, device=device))
    service.dropped_traces = lambda: 7
    return served


async def test_every_metric_can_be_driven_to_a_value():
    """No name of the list stays without a sample that is not zero."""
    served = busy_service()
    async with served.client() as client:
        served.service.lifecycle.advance(State.WARMING, "")
        served.service.lifecycle.advance(State.READY, "")
        body = {"model": "toy", "prompt": "abcd", "max_tokens": 5}
        assert (await client.post("/v1/completions", json=body)).status_code == 200
        served.service.lifecycle = loading()
        found = samples((await client.get("/metrics")).text)

    for metric in names.METRICS:
        suffix = "_count" if metric.kind == "histogram" else ""
        assert any(found[metric.name + suffix].values()), metric.name
        labels = {frozenset(re.findall(r"(\w+)=", each)) for each in found[metric.name + suffix]}
        assert labels == {frozenset(metric.labels)}, metric.name


async def test_a_request_for_text_is_counted_by_model_and_operation():
    """Two choices of three tokens: one duration, one time to first token, one time per later token, all tokens."""
    served = serve("ab")
    async with served.client() as client:
        body = {"model": "org/toy-alias", "messages": [{"role": "user", "content": "x"}], "n": 2}
        usage = (await client.post("/v1/chat/completions", json=body)).json()["usage"]
        found = samples((await client.get("/metrics")).text)

    labels = (
        "gen_ai_operation_name=chat,gen_ai_provider_name=coldstream,"
        "gen_ai_request_model=org/toy-alias,gen_ai_response_model=toy"
    )
    assert found["gen_ai_server_request_duration_seconds_count"] == {f"error_type=,{labels}": 1.0}
    assert found["gen_ai_server_time_to_first_token_seconds_count"] == {labels: 1.0}
    assert found["gen_ai_server_time_per_output_token_seconds_count"] == {labels: 1.0}
    assert found["coldstream_choices_finished_total"] == {"finish_reason=stop": 2.0}
    assert found["coldstream_generation_tokens_total"] == {"": usage["completion_tokens"]}
    assert found["coldstream_prompt_tokens_total"] == {"": 2.0 * usage["prompt_tokens"]}
    assert found["coldstream_prefix_cache_hit_tokens_total"] == {"": 2.0 * (usage["prompt_tokens"] // 2)}


@pytest.mark.parametrize(("script", "error"), [([97, "boom"], "engine_failed"), ([97, HANG], "cancelled")])
async def test_a_request_that_fails_has_a_duration_with_its_error_and_no_time_to_a_token(script, error):
    """Times to tokens are of successful requests only."""
    served = serve(lambda _: script)
    async with served.client() as client:
        body = {"model": "toy", "prompt": "ab", "max_tokens": 9, "stream": True}
        if error == "cancelled":
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.post("/v1/completions", json=body), 0.2)
        else:
            await client.post("/v1/completions", json=body)
        found = samples((await client.get("/metrics")).text)
    counts = found["gen_ai_server_request_duration_seconds_count"]
    assert [re.search("error_type=([^,]*)", labels)[1] for labels in counts] == [error]
    assert "gen_ai_server_time_to_first_token_seconds_count" not in found


async def test_requests_are_counted_by_route_and_what_nobody_knows_as_one():
    """Clients cannot invent label values: neither by paths nor by methods."""
    async with serve().client() as client:
        await client.get("/v1/models")
        await client.get("/v1/models/toy")
        for path, method in itertools.product(("/nothing", "/nowhere"), ("GET", "BREW")):
            await client.request(method, path)
        for probe in ("/health", "/livez", "/startupz", "/metrics"):
            await client.get(probe)
        found = samples((await client.get("/metrics")).text)["http_server_request_duration_seconds_count"]
    assert found == {
        "http_request_method=GET,http_response_status_code=200,http_route=/v1/models": 1,
        "http_request_method=GET,http_response_status_code=200,http_route=/v1/models/{name:path}": 1,
        "http_request_method=GET,http_response_status_code=404,http_route=": 2,
        "http_request_method=_OTHER,http_response_status_code=404,http_route=": 2,
    }


async def test_histograms_have_the_conventions_buckets():
    """The boundaries that OpenTelemetry advises, and infinity."""
    async with serve().client() as client:
        await client.post("/v1/completions", json={"model": "toy", "prompt": "a"})
        families = {family.name: family for family in parse((await client.get("/metrics")).text)}
    for metric in (names.TIME_TO_FIRST_TOKEN, names.TIME_PER_OUTPUT_TOKEN, names.REQUEST_DURATION, names.HTTP_DURATION):
        bounds = [sample.labels["le"] for sample in families[metric.name].samples if "le" in sample.labels]
        assert [float(bound) for bound in bounds] == [*metric.buckets, float("inf")]


@pytest.mark.parametrize(
    ("accept", "has_exemplar"), [(OPENMETRICS, True), ("text/plain; version=0.0.4", False), ("", False)]
)
def test_exemplars_come_with_openmetrics_only(accept, has_exemplar):
    """A sampled trace's id stands beside the bucket that its request fell into."""
    metrics = Metrics(serve_nothing())
    trace = SimpleNamespace(exemplar={"trace_id": "ab" * 16, "span_id": "cd" * 8})
    metrics.observe(
        WatchedRequest(
            operation="chat", model="m", served_model="m", arrived_s=1.0, first_token_s=1.5, ended_s=3.5,
            choices=1, output_tokens=5, trace=trace,
        )
    )  # fmt: skip
    metrics.observe_http(HttpRequest(method="GET", route="/", path="/", status=200, start_s=1, end_s=2, trace=trace))
    text, content_type = metrics.render(accept)
    assert content_type.startswith(accept.partition(";")[0] or "text/plain")
    if has_exemplar:
        families = {family.name: family for family in parse_openmetrics(text.decode())}
        for metric, value in {
            names.TIME_TO_FIRST_TOKEN: 0.5,
            names.TIME_PER_OUTPUT_TOKEN: 0.5,
            names.REQUEST_DURATION: 2.5,
            names.HTTP_DURATION: 1.0,
        }.items():
            exemplars = [sample.exemplar for sample in families[metric.name].samples if sample.exemplar]
            assert [(each.labels, each.value) for each in exemplars] == [(trace.exemplar, value)]
    else:
        assert b"# {" not in text


def serve_nothing():
    """As much of a service as a scrape reads."""

    async def build():
        return serve().service

    return asyncio.run(build())


async def test_reads_of_all_shards_are_one_histogram():
    """Cumulated counts over every shard whose reads are known; none where they are not."""
    served = serve()
    async with served.client() as client:
        served.service.ledger.shards = SHARDS[2:]
        assert "coldstream_range_fetch" not in (await client.get("/metrics")).text
        served.service.ledger.shards = SHARDS
        text = (await client.get("/metrics")).text
    found = samples(text)
    buckets = found["coldstream_range_fetch_duration_seconds_bucket"]
    assert (buckets["le=0.005"], buckets["le=0.01"], buckets["le=0.025"]) == (0, 1, 3)
    assert (buckets["le=60.0"], buckets["le=+Inf"]) == (3, 4)
    assert found["coldstream_range_fetch_duration_seconds_count"] == {"": 4}
    assert found["coldstream_range_fetch_duration_seconds_sum"][""] == pytest.approx(99.05)


async def test_requests_count_as_active_while_they_are_answered():
    """By method; a scrape and a probe are none."""
    computing = asyncio.Barrier(3)
    served = serve(lambda _: [computing, 97, HANG])
    async with served.client() as client:
        body = {"model": "toy", "prompt": "ab", "max_tokens": 9}
        asked = [asyncio.create_task(client.post("/v1/completions", json=body)) for _ in range(2)]
        await computing.wait()
        during = samples((await client.get("/metrics")).text)["http_server_active_requests"]
        for task in asked:
            task.cancel()
        await asyncio.wait(asked)
        after = samples((await client.get("/metrics")).text)["http_server_active_requests"]
    labels = "http_request_method=POST,url_scheme=http"
    assert (during, after) == ({labels: 2}, {labels: 0})


async def test_counters_go_on_over_a_restart_and_nothing_runs_meanwhile():
    """A counter never falls; gauges of a dead engine are zero or gone."""
    served = busy_service()
    before = served.service.load.stats
    served.service.load.lost()
    async with served.client() as client:
        dead = samples((await client.get("/metrics")).text)
        device = msgspec.structs.replace(before.device, allocation_retries=1, allocation_failures=0)
        served.service.load.update(
            EngineStats(running=1, waiting=0, used_blocks=0, num_blocks=4, preemptions=2, device=device)
        )
        alive = samples((await client.get("/metrics")).text)
    assert dead["coldstream_preemptions_total"] == {"": 5}
    assert dead["coldstream_requests_running"] == dead["coldstream_requests_waiting"] == {"": 0}
    assert "coldstream_kv_cache_usage_ratio" not in dead
    assert alive["coldstream_preemptions_total"] == {"": 7}
    for name, count in {"retries": (3, 4), "failures": (2, 2)}.items():
        each = f"coldstream_gpu_allocation_{name}_total"
        assert (dead[each], alive[each]) == ({"": count[0]}, {"": count[1]})


def test_nothing_heavy_is_imported_before_probes_answer():
    """Neither prometheus-client nor OpenTelemetry is a part of what the event loop starts with."""
    code = (
        "import sys, app.serve, app.supervisor, uvicorn;"
        "print([m for m in ('prometheus_client', 'opentelemetry', 'fastapi', 'starlette') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
