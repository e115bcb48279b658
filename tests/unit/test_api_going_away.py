"""A server that drains or has failed, as HTTP clients see it: what begins is refused, and connections end."""

import asyncio
import contextlib
import http.client

import httpx
import pytest

from app.lifecycle import State
from tests.unit.scripted_engine import events, listening, serve

PATH = "/v1/completions"
BODY = {"model": "toy", "prompt": "hi", "max_tokens": 50}
PROBES = ["/livez", "/health", "/readyz", "/startupz", "/metrics"]
GONE = [State.DRAINING, State.FAILED]


async def test_a_ready_server_keeps_its_connections():
    """No answer asks a client to go."""
    async with serve().client() as client:
        answers = [await client.get(path) for path in [*PROBES, "/v1/models"]]
        answers.append(await client.post(PATH, json=BODY))
    assert all("connection" not in answer.headers for answer in answers)


@pytest.mark.parametrize("state", GONE)
async def test_new_requests_are_refused_and_told_to_go_elsewhere(state):
    """A 503 with Retry-After and the reason, and like every other answer it closes the connection."""
    served = serve()
    served.service.lifecycle.advance(state, "the reason")
    async with served.client() as client:
        refused = await client.post(PATH, json=BODY)
        answers = [await client.get(path) for path in [*PROBES, "/version", "/nowhere"]]
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert "the reason" in refused.json()["error"]["message"]
    assert served.engine.submitted == []
    assert {answer.headers["connection"] for answer in [refused, *answers]} == {"close"}


@pytest.mark.parametrize("method_and_path", [("POST", PATH), ("GET", "/health")])
async def test_a_connection_that_was_kept_alive_ends(method_and_path):
    """The next answer on it is the last: the server closes it."""
    served = serve()
    async with listening(served.app) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
        connection.connect()

        def ask(method, path):
            body = b'{"model": "toy", "prompt": "hi"}' if method == "POST" else None
            connection.request(method, path, body, {"content-type": "application/json"})
            response = connection.getresponse()
            response.read()
            return response

        with contextlib.closing(connection), connection.sock.dup() as watched:
            assert (await asyncio.to_thread(ask, *method_and_path)).status == 200
            served.service.lifecycle.advance(State.DRAINING, "shutting down")
            answer = await asyncio.to_thread(ask, *method_and_path)
            assert await asyncio.to_thread(watched.recv, 1) == b""
    assert answer.status == 503
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_what_is_in_flight_is_answered(stream):
    """A drain refuses what begins, not what runs; a whole answer tells its client to go elsewhere next."""
    waiting = asyncio.Barrier(2)
    served = serve(lambda _: [65, waiting, 66])
    async with listening(served.app) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
        answer = asyncio.create_task(client.post(PATH, json=BODY | {"stream": stream}))
        async with asyncio.timeout(30):
            while not waiting.n_waiting:  # noqa: ASYNC110 - a barrier has no event for this
                await asyncio.sleep(0.005)
        served.service.lifecycle.advance(State.DRAINING, "shutting down")
        await waiting.wait()
        response = await answer
    assert response.status_code == 200
    if stream:
        assert events(response.text)[-1] == "[DONE]"
    else:
        assert response.json()["choices"][0]["text"] == served.text.decode([65, 66])
        assert response.headers["connection"] == "close"
