"""Requests before readiness, as HTTP clients see them: who waits, what a stream gets meanwhile, and who is refused."""

import asyncio
import json
from contextlib import asynccontextmanager

import httpx
import openai
import pytest

from app.api.cors import CorsOptions
from app.api.front import Front
from app.api.server import ApiOptions, create_app
from app.errors import EngineFailure
from app.lifecycle import Lifecycle, State
from app.service import Patience
from tests.unit.scripted_engine import events, listening, ready_lifecycle, serve

PATH = "/v1/completions"
BODY = {"model": "toy", "prompt": "hi", "max_tokens": 50}
CHAT = {"model": "toy", "messages": [{"role": "user", "content": "hi"}]}
WAIT = {"x-coldstream-wait": "60"}
EVERY_PATH = [
    ("POST", PATH, BODY),
    ("POST", "/v1/chat/completions", CHAT),
    ("POST", "/tokenize", {"prompt": "hi"}),
    ("POST", "/detokenize", {"tokens": [65]}),
    ("GET", "/tokenizer_info", None),
    ("GET", "/v1/models", None),
    ("GET", "/v1/models/toy", None),
]


def loading():
    lifecycle = Lifecycle()
    lifecycle.advance(State.LOADING, "loading weights")
    return lifecycle


def make_ready(served):
    for state in (State.LOADING, State.WARMING, State.READY):
        served.service.lifecycle.advance(state, state.value)


async def until_held(served, count):
    """Return once so many wait; it takes as many turns of the loop as it takes."""
    async with asyncio.timeout(30):
        while served.service.waiting_room.held != count:  # noqa: ASYNC110 - the room has no event for tests
            await asyncio.sleep(0.002)


@asynccontextmanager
async def asking(served, method="POST", path=PATH, body=None, headers=WAIT):
    """A request that is held, and its answer to be."""
    async with served.client(headers=headers) as client:
        before = served.service.waiting_room.held
        task = asyncio.create_task(client.request(method, path, json=body))
        await until_held(served, before + 1)
        try:
            yield task
        finally:
            task.cancel()


@pytest.mark.parametrize(("method", "path", "body"), EVERY_PATH)
async def test_whoever_asks_to_wait_is_answered_once_it_is_ready(method, path, body):
    """On every endpoint that needs the model, the answer is the one that a ready server gives."""
    served = serve(lifecycle=loading())
    async with asking(served, method, path, body) as answer:
        assert served.engine.submitted == []
        make_ready(served)
        assert (await answer).status_code == 200
    assert served.service.waiting_room.held == 0


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("headers", "status"), [({}, 200), ({"x-coldstream-wait": "0"}, 503)])
async def test_the_setting_holds_for_whoever_says_nothing(stream, headers, status):
    """Where the server lets requests wait they do, but for one that says that it will not."""
    served = serve(lifecycle=loading(), patience=Patience(until_ready_s=60))
    async with served.client(headers=headers) as client:
        answer = asyncio.create_task(client.post(PATH, json=BODY | {"stream": stream}))
        if status == 200:
            await until_held(served, 1)
            make_ready(served)
        assert (await answer).status_code == status


async def test_the_header_wins_over_the_setting():
    """A client's patience is its own, also where the server's is shorter."""
    served = serve(lifecycle=loading(), patience=Patience(until_ready_s=0.01))
    async with asking(served, body=BODY) as answer:
        await asyncio.sleep(0.05)
        make_ready(served)
        assert (await answer).status_code == 200


@pytest.mark.parametrize("value", ["soon", "", "-1", "nan", "inf", "3601", "1 s"])
@pytest.mark.parametrize("lifecycle", [loading, ready_lifecycle])
async def test_a_malformed_header_is_a_400_that_names_it(value, lifecycle):
    """Whether the server is ready or not."""
    served = serve(lifecycle=lifecycle())
    async with served.client(headers={"x-coldstream-wait": value}) as client:
        response = await client.post(PATH, json=BODY)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "X-Coldstream-Wait"
    assert "X-Coldstream-Wait" in response.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_who_waits_in_vain_is_refused(stream):
    """A 503 with Retry-After, while nothing has been sent."""
    served = serve(lifecycle=loading())
    async with served.client(headers={"x-coldstream-wait": "0.01"}) as client:
        response = await client.post(PATH, json=BODY | {"stream": stream})
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    assert "after 0.01 s: loading: loading weights" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("change", "headers", "status"),
    [
        ({"model": "gpt-9"}, {}, 404),
        ({"prompt": 5}, {}, 400),
        ({"best_of": 3}, {}, 400),
        ({"n": 128}, {}, 400),
        ({"stream_options": {}}, {}, 400),
        ({}, {"authorization": "Bearer wrong"}, 401),
    ],
)
async def test_what_can_never_be_answered_takes_no_place(change, headers, status):
    """Name, schema, key and what contradicts itself are checked before any wait."""
    served = serve(lifecycle=loading(), options=ApiOptions(api_keys=("key",)), max_sequences=64)
    async with served.client(headers=WAIT | {"authorization": "Bearer key"} | headers) as client, asyncio.timeout(30):
        response = await client.post(PATH, json=BODY | change)
    assert response.status_code == status


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_what_only_the_model_can_refuse_is_refused_behind_the_wait(stream):
    """A prompt that is too long is a 400 with the model's limit, once that is known."""
    served = serve(lifecycle=loading())
    async with asking(served, body=BODY | {"prompt": "x" * 1000, "stream": stream}) as answer:
        make_ready(served)
        assert (await answer).status_code == 400
    assert "200" in (await answer).json()["error"]["message"]


async def test_those_who_wait_are_begun_as_they_came():
    """The engine hears of them in the order of their arrival."""
    served = serve(lifecycle=loading())
    async with served.client(headers=WAIT) as client:
        answers = []
        for number in range(10):
            body = BODY | {"prompt": [number], "stream": number % 2 == 1}
            answers.append(asyncio.create_task(client.post(PATH, json=body)))
            await until_held(served, len(answers))
        make_ready(served)
        assert [answer.status_code for answer in await asyncio.gather(*answers)] == [200] * 10
    assert [submit.prompt_token_ids for submit in served.engine.submitted] == [(number,) for number in range(10)]


async def test_one_more_than_there_is_room_for_is_refused_at_once():
    """A 503 for the last, an answer for those before."""
    served = serve(lifecycle=loading(), patience=Patience(max_held_requests=1))
    async with asking(served, body=BODY) as answer, served.client(headers=WAIT) as client:
        refused = await client.post(PATH, json=BODY)
        make_ready(served)
        assert (await answer).status_code == 200
    assert refused.status_code == 503
    assert refused.headers["retry-after"]
    assert "1 requests wait" in refused.json()["error"]["message"]


@pytest.mark.parametrize(("method", "path", "body"), [*EVERY_PATH, ("POST", PATH, BODY | {"stream": True})])
async def test_a_client_that_leaves_gives_its_place_back(method, path, body):
    """At once, over a real connection: the next one finds room and is answered."""
    served = serve(lifecycle=loading(), patience=Patience(max_held_requests=1, keep_alive_s=0.02))
    async with listening(served.app) as url, httpx.AsyncClient(base_url=url, headers=WAIT, timeout=60) as client:
        leaving = asyncio.create_task(client.request(method, path, json=body))
        await until_held(served, 1)
        await asyncio.sleep(0.05)  # so that the stream has its headers
        leaving.cancel()
        await until_held(served, 0)
        answer = asyncio.create_task(client.request(method, path, json=body))
        await until_held(served, 1)
        make_ready(served)
        assert (await answer).status_code == 200


async def test_a_stream_is_kept_alive_while_it_waits():
    """Headers and comments flow; the official client reads past them to the whole text."""
    served = serve("hello", lifecycle=loading(), patience=Patience(keep_alive_s=0.02))
    async with listening(served.app) as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x") as client:
        stream = await client.completions.create(**BODY, stream=True, extra_headers=WAIT)  # so headers have come
        assert served.service.waiting_room.held == 1
        make_ready(served)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == "hello"


@pytest.mark.parametrize("end", ["in vain", "failed", "draining", "malformed"])
async def test_a_refusal_behind_the_headers_is_the_streams_error(end):
    """Comments, then the error, and no [DONE]."""
    served = serve(lifecycle=loading(), patience=Patience(keep_alive_s=0.02))
    wait_s = "0.1" if end == "in vain" else "60"
    prompt = "x" * 1000 if end == "malformed" else "x"
    async with (
        listening(served.app) as url,
        httpx.AsyncClient(base_url=url, headers={"x-coldstream-wait": wait_s}, timeout=60) as client,
        client.stream("POST", PATH, json=BODY | {"prompt": prompt, "stream": True}) as response,
    ):
        lines = response.aiter_lines()
        assert await anext(lines) == ": keep-alive"
        if end == "malformed":
            make_ready(served)
        elif end != "in vain":
            served.service.lifecycle.advance(State(end), "the reason")
        rest = [line async for line in lines if line and not line.startswith(":")]
    assert response.status_code == 200
    (error,) = [json.loads(line.removeprefix("data: "))["error"] for line in rest]
    assert error["code"] == (None if end == "malformed" else "not_ready")
    assert served.service.waiting_room.held == 0


@pytest.mark.parametrize("state", [State.DRAINING, State.FAILED])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_nobody_waits_for_a_server_that_goes_away(state, stream):
    """What waits ends at once with a 503 and its reason, and the connection with it."""
    served = serve(lifecycle=loading())
    async with asking(served, body=BODY | {"stream": stream}) as answer:
        served.service.lifecycle.advance(state, "the reason")
        response = await answer
    assert response.status_code == 503
    assert response.headers["retry-after"]
    assert response.headers["connection"] == "close"
    assert "the reason" in response.json()["error"]["message"]


async def test_a_dead_engine_is_waited_for_like_a_load():
    """While another one is bound, requests wait; the new one answers them."""
    served = serve("hello")
    served.service.engine.detach(EngineFailure("the engine died"))
    served.service.lifecycle.advance(State.WARMING, "another one binds")
    async with asking(served, body=BODY) as answer:
        served.service.engine.attach(served.engine.send)
        make_ready(served)
        assert (await answer).json()["choices"][0]["text"] == "hello"


async def test_the_wait_is_part_of_the_requests_time():
    """Its duration and its time to first token count from its arrival; when the server was ready is noted."""
    served = serve(lifecycle=loading())
    seen = []
    served.service.observers.append(seen.append)
    async with asking(served, body=BODY) as answer:
        await asyncio.sleep(0.1)
        make_ready(served)
        await answer
    async with served.client(headers=WAIT) as client:
        await client.post(PATH, json=BODY)
    held, late = seen
    assert held.first_token_s - held.arrived_s >= 0.1
    assert held.arrived_s + 0.1 <= held.ready_s <= held.first_token_s
    assert late.ready_s is None


async def test_a_page_may_send_the_header():
    """Browsers are told so, where every header is allowed."""
    asking_first = {
        "origin": "https://chat.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "x-coldstream-wait",
    }
    options = ApiOptions(cors=CorsOptions(origins=("https://chat.example",)))
    async with serve(lifecycle=loading(), options=options).client() as client:
        response = await client.options(PATH, headers=asking_first)
    assert response.status_code == 200
    assert "x-coldstream-wait" in response.headers["access-control-allow-headers"]


async def test_requests_before_the_api_is_imported_wait_by_the_same_rules():
    """Those that ask for it are answered once ready, others refused as soon as there is an API."""
    served = serve("hello", lifecycle=loading())
    front = served.app = Front(served.service)
    async with served.client() as client:
        patient = asyncio.create_task(client.post(PATH, json=BODY, headers=WAIT))
        hasty = asyncio.create_task(client.post(PATH, json=BODY))
        await asyncio.sleep(0.01)
        assert (await client.get("/livez")).status_code == 200
        front.serve_with(create_app(served.service, ApiOptions()))
        assert (await hasty).status_code == 503
        await until_held(served, 1)
        make_ready(served)
        assert (await patient).json()["choices"][0]["text"] == "hello"


async def test_only_so_many_wait_for_the_api_to_be_imported(monkeypatch):
    """One more is a 503 with Retry-After; whoever was there before is answered."""
    monkeypatch.setattr("app.api.front._MOST_EARLY", 2)
    served = serve("hello")
    front = served.app = Front(served.service)
    async with served.client() as client:
        early = [asyncio.create_task(client.post(PATH, json=BODY)) for _ in range(2)]
        await asyncio.sleep(0.01)
        refused = await client.post(PATH, json=BODY)
        front.serve_with(create_app(served.service, ApiOptions()))
        assert [response.status_code for response in await asyncio.gather(*early)] == [200, 200]
        assert (await client.post(PATH, json=BODY)).status_code == 200
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["code"] == "not_ready"


async def test_a_stream_that_waited_a_moment_looks_like_any_other():
    """Without a silence there is no comment."""
    served = serve("hello", lifecycle=loading(), patience=Patience(keep_alive_s=30))
    async with asking(served, body=BODY | {"stream": True}) as answer:
        make_ready(served)
        assert events((await answer).text)[-1] == "[DONE]"
