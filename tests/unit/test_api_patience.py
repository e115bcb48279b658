"""Requests that take long: the deadline that ends them, and the comments that keep their streams open."""

import asyncio
import json

import httpx
import openai
import pytest

from app.service import Patience
from tests.unit.scripted_engine import HANG, listening, serve

PATH = "/v1/completions"
BODY = {"model": "toy", "prompt": "hi", "max_tokens": 50}
COMMENT = ": keep-alive"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_deadline_before_the_first_token_is_a_504(stream):
    """The envelope says how long is too long, that no retry helps, and the sequences are aborted."""
    served = serve(lambda _: [HANG], patience=Patience(deadline_s=0.1))
    async with served.client() as client:
        response = await client.post(PATH, json=BODY | {"stream": stream, "n": 2})
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"]) == (504, "timeout_error", "deadline_exceeded")
    assert "0.1 s" in error["message"]
    assert response.headers["x-should-retry"] == "false"
    assert sorted(served.engine.aborted) == sorted(submit.request_id for submit in served.engine.submitted)


async def test_a_deadline_within_a_stream_is_its_error():
    """What has come by then has come; the stream ends with the error and no [DONE], its sequence aborted."""
    served = serve(lambda _: [65, 66, HANG], patience=Patience(deadline_s=0.2))
    async with served.client() as client:
        response = await client.post(PATH, json=BODY | {"stream": True})
    data = [json.loads(line.removeprefix("data: ")) for line in response.text.split("\n\n") if line]
    assert "".join(chunk["choices"][0]["text"] for chunk in data[:-1]) == served.text.decode([65, 66])
    assert data[-1]["error"]["code"] == "deadline_exceeded"
    assert served.engine.aborted == [served.engine.submitted[0].request_id]


async def test_what_is_done_in_time_is_not_touched():
    """A deadline that is not reached changes nothing."""
    async with serve("hello", patience=Patience(deadline_s=30)).client() as client:
        response = await client.post(PATH, json=BODY | {"n": 3})
    assert [choice["text"] for choice in response.json()["choices"]] == ["hello"] * 3


async def test_the_official_client_does_not_try_again():
    """A retry would take as long: the client raises at once."""
    served = serve(lambda _: [HANG], patience=Patience(deadline_s=0.1))
    async with listening(served.app) as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x") as client:
        with pytest.raises(openai.InternalServerError, match=r"the server.s limit"):
            await client.completions.create(**BODY)
    assert len(served.engine.submitted) == 1


async def lines_of(served, count):
    """The first lines of a stream over a real socket."""
    async with (
        listening(served.app) as url,
        httpx.AsyncClient(base_url=url, timeout=10) as client,
        client.stream("POST", PATH, json=BODY | {"stream": True}) as response,
    ):
        assert response.status_code == 200
        found = response.aiter_lines()
        return [line for line in [await anext(found) for _ in range(2 * count)] if line]


@pytest.mark.parametrize("before", [[], [65]], ids=["before the first token", "midway"])
async def test_a_silent_stream_is_kept_alive(before):
    """Comments come while nothing else does, also where there is no token yet."""
    served = serve(lambda _: [*before, HANG], patience=Patience(keep_alive_s=0.05))
    lines = await lines_of(served, len(before) + 3)
    assert all(line.startswith("data: ") for line in lines[: len(before)])
    assert lines[len(before) :] == [COMMENT] * 3


async def test_a_stream_that_speaks_gets_no_comments():
    """With tokens coming, however long in all, there is nothing but data."""
    served = serve("hello", patience=Patience(keep_alive_s=5))
    async with served.client() as client:
        response = await client.post(PATH, json=BODY | {"stream": True})
    assert all(line.startswith("data: ") for line in response.text.split("\n\n") if line)


async def test_a_stream_goes_on_behind_its_comments():
    """The official client reads past them to the whole text."""
    waiting = asyncio.Barrier(2)
    served = serve(lambda _: [waiting, 65, 66], patience=Patience(keep_alive_s=0.05))
    async with listening(served.app) as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x") as client:
        stream = await client.completions.create(**BODY, stream=True)  # returns with the headers, so with a comment
        await waiting.wait()
        text = "".join([chunk.choices[0].text async for chunk in stream])
    assert text == served.text.decode([65, 66])


async def test_a_failure_behind_a_comment_is_the_streams_error():
    """Once there are headers there is no other status: the error is an event."""
    waiting = asyncio.Barrier(2)
    served = serve(lambda _: [waiting, "the engine died"], patience=Patience(keep_alive_s=0.05))
    async with listening(served.app) as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x") as client:
        stream = await client.completions.create(**BODY, stream=True)
        await waiting.wait()
        with pytest.raises(openai.APIError, match="the engine died"):
            await anext(stream)


@pytest.mark.parametrize("before", [[], [65]], ids=["before the first token", "midway"])
async def test_a_client_that_leaves_a_silent_stream_aborts_it(before):
    """Comments keep no sequence alive whose client is gone."""
    served = serve(lambda _: [*before, HANG], patience=Patience(keep_alive_s=0.02))
    await lines_of(served, 2)
    async with asyncio.timeout(5):
        await served.engine.abort_seen.wait()
    assert served.engine.aborted == [served.engine.submitted[0].request_id]
