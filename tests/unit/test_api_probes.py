"""The probes and the list of models."""

import pytest

from app.lifecycle import Lifecycle, State
from streaming.clock import boottime_s
from streaming.progress import Progress
from tests.unit.scripted_engine import MAX_MODEL_LEN, serve

PATHS_TO = {
    State.STARTING: [],
    State.LOADING: [State.LOADING],
    State.WARMING: [State.LOADING, State.WARMING],
    State.READY: [State.LOADING, State.WARMING, State.READY],
    State.DRAINING: [State.LOADING, State.WARMING, State.READY, State.DRAINING],
    State.FAILED: [State.FAILED],
}


def lifecycle_in(state):
    lifecycle = Lifecycle()
    for step in PATHS_TO[state]:
        assert lifecycle.advance(step, f"now {step.value}")
    return lifecycle


@pytest.mark.parametrize("state", list(State))
async def test_only_a_ready_server_is_ready_and_only_a_failed_one_is_dead(state):
    """/health and /readyz are 200 in READY alone, /livez is 503 in FAILED alone, /startupz always 200."""
    async with serve(lifecycle=lifecycle_in(state)).client() as client:
        statuses = {
            path: (await client.get(path)).status_code for path in ("/health", "/readyz", "/livez", "/startupz")
        }
    ready = 200 if state is State.READY else 503
    assert statuses == {
        "/health": ready,
        "/readyz": ready,
        "/livez": 503 if state is State.FAILED else 200,
        "/startupz": 200,
    }


async def test_health_tells_how_far_the_load_is():
    """While bytes land, /health has the counts and a Retry-After of the estimated time."""
    lifecycle = lifecycle_in(State.LOADING)
    lifecycle.progress = Progress(total_bytes=10_000, start_s=boottime_s() - 1.0)
    lifecycle.progress.add(100, boottime_s())
    async with serve(lifecycle=lifecycle).client() as client:
        response = await client.get("/health")
    body = response.json()
    assert set(body) == {"state", "bytes_landed", "bytes_total", "throughput_bytes_per_s", "eta_s", "detail"}
    assert (body["state"], body["bytes_landed"], body["bytes_total"]) == ("loading", 100, 10_000)
    assert body["detail"] == "now loading"
    # A hundredth took a second or a little more.
    assert 99 <= body["eta_s"] <= int(response.headers["retry-after"]) <= 120


async def test_a_ready_server_says_nothing_of_retrying():
    """/health in READY has no Retry-After."""
    async with serve().client() as client:
        response = await client.get("/health")
    assert "retry-after" not in response.headers
    assert response.json()["state"] == "ready"


async def test_startupz_is_the_ledger_and_the_state():
    """/startupz shows phases and milestones as they are recorded, and the seconds since exec at which it was asked."""
    served = serve()
    served.service.ledger.phase("import", 1.0, 2.5)
    served.service.ledger.milestone("ready_time", 3.0)
    before_s = boottime_s()  # exec was at 0
    async with served.client() as client:
        body = (await client.get("/startupz")).json()
    assert before_s - 0.001 <= body.pop("now_s") <= boottime_s() + 0.001
    assert body == {
        "state": "ready",
        "phases": [{"name": "import", "start_s": 1.0, "end_s": 2.5}],
        "milestones": {"ready_time": 3.0},
        "durations": {},
        "fallbacks": [],
    }


async def test_every_name_is_a_model():
    """/v1/models lists each served name with the model's limits."""
    async with serve().client() as client:
        body = (await client.get("/v1/models")).json()
    assert body["object"] == "list"
    assert body["data"][1] == {
        "id": "org/toy-alias",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "coldstream",
        "root": "toy",
        "max_model_len": MAX_MODEL_LEN,
    }


async def test_a_model_can_be_fetched_by_a_name_with_slashes():
    """/v1/models/{id} takes any served name and is a 404 for others."""
    async with serve().client() as client:
        found = await client.get("/v1/models/org/toy-alias")
        missing = await client.get("/v1/models/org/other")
    assert found.json()["id"] == "org/toy-alias"
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"
