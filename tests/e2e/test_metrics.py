"""/metrics of a whole server: from the first second, live while it loads, and as Prometheus' own tool wants it."""

from __future__ import annotations

import time

import httpx

from streaming.clock import boottime_s, exec_time_s
from tests.coldstream import Server, serving, wait_for
from tests.collector import sink
from tests.prometheus import lint, prometheus
from tests.unit.test_metrics import samples
from tools.blob_server import BlobServer


def scrape(server: Server) -> dict[str, dict[str, float]]:
    return samples(server.client.get("/metrics").text)


def test_metrics_tell_of_the_load_while_it_runs_and_of_the_startup_afterwards(small_model, tmp_path):
    """Bytes rise, an ETA stands there and goes; then phases, the cold start's names, the engine and a clean lint."""
    with (
        BlobServer(small_model.folder, bytes_per_s=15e6) as source,
        serving(source.url, log_path=tmp_path / "log") as server,
    ):
        first = wait_for(lambda: _scraped(server))
        assert boottime_s() - exec_time_s(server.pid) < 3  # 0.4 on a machine with nothing else to do
        assert first["coldstream_state"]["state=ready"] == 0
        landed, etas = [], []
        while server.health()[0] != 200:
            found = scrape(server)
            landed += found.get("coldstream_load_landed_bytes", {}).values()
            etas += found.get("coldstream_load_eta_seconds", {}).values()
            time.sleep(0.1)
        server.complete("Hello", max_tokens=8, ignore_eos=True)
        wait_for(lambda: scrape(server).get("coldstream_kv_cache_blocks"))
        found, ledger = scrape(server), server.client.get("/startupz").json()
        text = server.client.get("/metrics").content
    assert landed == sorted(landed)
    assert landed[-1] > landed[0]
    assert any(eta > 0 for eta in etas)
    assert "coldstream_load_eta_seconds" not in found
    assert found["coldstream_load_landed_bytes"] == found["coldstream_load_bytes"]
    _agrees_with_the_ledger(found, ledger)
    assert found["coldstream_generation_tokens_total"] == {"": 8}
    assert found["coldstream_state"]["state=ready"] == 1
    assert lint(text) == ""


def _agrees_with_the_ledger(found, ledger):
    """Every phase, milestone and duration of /startupz, to the millisecond, and nothing else."""
    starts = {f"phase={phase['name']}": phase["start_s"] for phase in ledger["phases"]}
    milestones = {f"milestone={name}": at_s for name, at_s in ledger["milestones"].items()}
    durations = {f"span={name}": value for name, value in ledger["durations"].items()}
    assert set(ledger["milestones"]) == {
        "artifact_fetch_start",
        "artifact_fetch_end",
        "host_staging_complete",
        "model_load_complete",
        "first_token_time",
        "ready_time",
        "first_answer_time",
    }
    assert set(ledger["durations"]) == {
        "fetch_s",
        "stage_s",
        "load_s",
        "ttft_s",
        "cold_start_s",
        "cold_start_from_exec_s",
    }
    assert rounded(found["coldstream_startup_phase_start_seconds"]) == starts
    assert rounded(found["coldstream_startup_milestone_seconds"]) == milestones
    assert rounded(found["coldstream_startup_duration_seconds"]) == durations


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items()}


def _scraped(server: Server) -> dict[str, dict[str, float]] | None:
    try:
        return scrape(server)
    except httpx.TransportError:
        return None


def test_prometheus_itself_keeps_the_exemplars(tiny_model, tmp_path):
    """A real Prometheus scrapes OpenMetrics, and a histogram leads to the trace of the request that it counted."""
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    with (
        sink() as (_, sink_port),
        serving(
            str(tiny_model.folder),
            log_path=tmp_path / "log",
            environ={
                "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{sink_port}",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            },
        ) as server,
        prometheus(server.url.removeprefix("http://"), tmp_path) as client,
    ):
        server.wait_ready()
        body = {"model": "m", "prompt": "Hello", "max_tokens": 2}
        headers = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
        assert server.client.post("/v1/completions", json=body, headers=headers).status_code == 200
        query = {"query": "gen_ai_server_time_to_first_token_seconds_bucket", "start": "0", "end": "9999999999"}

        def exemplars() -> list[dict[str, dict[str, str]]]:
            answer = client.get("/api/v1/query_exemplars", params=query).json()
            return [each for series in answer["data"] for each in series["exemplars"]]

        (exemplar,) = wait_for(exemplars)
        up = client.get("/api/v1/query", params={"query": "coldstream_state{state='ready'}"}).json()
    assert exemplar["labels"]["trace_id"] == trace_id
    assert [result["value"][1] for result in up["data"]["result"]] == ["1"]
