"""The flip: 503 with rising bytes while weights stream, 200 once loaded and warm, and the line that proves it."""

from __future__ import annotations

import re
import time

import httpx
import pytest

from streaming.clock import boottime_s, exec_time_s
from tests.coldstream import serving, wait_for
from tests.e2e.valve import Valve
from tools.blob_server import BlobServer


def test_the_flip_over_a_throttled_source(small_model, tmp_path):
    """Probes, completions and the log tell the same true story from exec to the first completion."""
    total_bytes = sum(path.stat().st_size for path in small_model.folder.glob("*.safetensors"))
    with (
        BlobServer(small_model.folder, bytes_per_s=15e6) as source,
        serving(source.url, "--served-model-name", "m", log_path=tmp_path / "log") as server,
    ):
        seen = []
        refusals = []

        def step() -> bool:
            try:
                status, health = server.health()
            except httpx.TransportError:
                return False
            seen.append((status, health))
            if health["state"] == "loading":
                answer = server.client.post("/v1/completions", json={"model": "m", "prompt": "x"})
                if server.health()[1]["state"] == "loading":  # else the load may have ended between the two
                    refusals.append(answer)
            time.sleep(0.2)
            return bool(status == 200)

        wait_for(step, 90)
        first = server.complete(small_model.prompt_token_ids, max_tokens=1)
        log = server.log()

    _check_probes(seen, total_bytes)
    assert refusals
    assert {answer.status_code for answer in refusals} == {503}
    assert all(1 <= int(answer.headers["retry-after"]) <= 120 for answer in refusals)
    assert first["choices"][0]["text"] == small_model.continuation()
    assert log.index("parameters on meta") < log.index("parameters bound") < log.index("ready: LlamaForCausalLM")
    line = re.search(r"streamed (\d+) tensors in 2 shards, (\d+) bytes, (\S+) -> cpu in [\d.]+ s \([\d.]+ GB/s\)", log)
    assert line is not None
    assert (int(line[1]), int(line[2]), line[3]) == (small_model.tensor_count(), seen[-1][1]["bytes_total"], source.url)


def _check_probes(seen, total_bytes):
    """Bytes rise while it loads, and only READY is a 200."""
    loading = [health for _, health in seen if health["state"] == "loading"]
    landed = [health["bytes_landed"] for health in loading]
    assert len(loading) >= 5
    assert landed == sorted(landed)
    assert landed[-1] > landed[0]
    assert all(health["bytes_total"] == loading[0]["bytes_total"] <= total_bytes for health in loading)
    assert all(status == (200 if health["state"] == "ready" else 503) for status, health in seen)
    assert seen[-1][0] == 200


def phases_of(server):
    """Those of /startupz, by their names."""
    return {phase["name"]: phase for phase in server.client.get("/startupz").json()["phases"]}


def test_parameters_are_on_meta_before_their_bytes_exist(small_model, tmp_path):
    """The engine binds and warms up while the weights are still on their way."""
    valve = Valve()
    with (
        BlobServer(small_model.folder, hook=valve) as source,
        serving(source.url, log_path=tmp_path / "log") as server,
    ):
        server.reach("loading")
        wait_for(lambda: "engine.warmup" in phases_of(server))
        assert server.state() == "loading"
        valve.opened.set()
        server.wait_ready()
        phases = phases_of(server)
    assert phases["engine.bind"]["end_s"] < phases["weights.fetch"]["end_s"]
    assert phases["engine.warmup"]["end_s"] < phases["weights.fetch"]["end_s"]


def test_livez_answers_before_torch_is_imported(tiny_model, tmp_path):
    """The port is alive while the engine is still importing, and the ledger proves the order."""
    with serving(str(tiny_model.folder), log_path=tmp_path / "log") as server:

        def livez() -> bool:
            try:
                return server.client.get("/livez").status_code == 200
            except httpx.TransportError:
                return False

        wait_for(livez)
        alive_after_s = boottime_s() - exec_time_s(server.pid)
        server.wait_ready()
        phases = phases_of(server)
    assert alive_after_s < phases["engine.import"]["end_s"]


def test_served_from_azurite_over_az(pushed_demo, azure_environment, tmp_path):
    """The main job: a container in, a completion out, with the milestones of the case study in the ledger."""
    with serving(pushed_demo, log_path=tmp_path / "log", environ=azure_environment) as server:
        server.wait_ready()
        answer = server.complete("The capital of France is", max_tokens=5)
        milestones = server.client.get("/startupz").json()["milestones"]
        log = server.log()
    assert "Paris" in answer["choices"][0]["text"]
    assert f"bytes, {pushed_demo} -> cpu in" in log
    order = [
        "artifact_fetch_start",
        "artifact_fetch_end",
        "host_staging_complete",
        "model_load_complete",
        "first_token_time",
        "ready_time",
        "first_answer_time",
    ]
    assert sorted(milestones, key=milestones.__getitem__) == order
    assert "AccountKey" not in log


@pytest.mark.parametrize("variables", [{"MODEL_LOAD_STRATEGY": "host-staging", "USE_PINNED_HOST_FALLBACK": "true"}])
def test_the_case_studys_variables_start_a_server(tiny_model, tmp_path, variables):
    """MODEL_SOURCE_URI names the model; what has no effect on the CPU is said in the log."""
    config = tmp_path / "case-study.yaml"
    config.write_text(
        "model:\n  format: safetensors\n  shard_count: 2\n  direct_gpu_load: true\n"
        "startup:\n  readiness_probe_initial_delay_seconds: 20\n  warmup_prompt: hello\n"
    )
    environ = variables | {"MODEL_SOURCE_URI": str(tiny_model.folder)}
    with serving("", "--config", str(config), log_path=tmp_path / "log", environ=environ) as server:
        server.wait_ready()
        assert server.complete("Hello", max_tokens=1)["usage"]["completion_tokens"] == 1
        assert "readiness_probe_initial_delay_seconds" in server.log()
