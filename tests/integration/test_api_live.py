"""The API behind a real uvicorn socket: the official client, disconnects, concurrent streams."""

import asyncio
from contextlib import asynccontextmanager

import httpx
import openai
import pytest

from app.api.server import ApiOptions
from app.errors import EngineFailure
from app.lifecycle import Lifecycle
from tests.unit.scripted_engine import HANG, listening, serve

CHAT = [{"role": "user", "content": "hi"}]
OPENAI = {"api_key": "key", "max_retries": 0}


@asynccontextmanager
async def async_client(served):
    async with (
        listening(served.app) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", **OPENAI) as client,
    ):
        yield client


async def with_sync_client(served, call):
    """Run `call(client)` in a thread with the official synchronous client."""

    def run(url):
        with openai.OpenAI(base_url=f"{url}/v1", **OPENAI) as client:
            return call(client)

    async with listening(served.app) as url:
        return await asyncio.to_thread(run, url)


async def test_the_async_client_reads_plain_answers():
    """Completions, chats and the model list parse as the official client's types."""
    async with async_client(serve("héllo")) as client:
        completion = await client.completions.create(model="toy", prompt="hi")
        chat = await client.chat.completions.create(model="toy", messages=CHAT)
        models = await client.models.list()
    assert completion.choices[0].text == "héllo"
    assert chat.choices[0].message.content == "héllo"
    assert chat.choices[0].finish_reason == "stop"
    assert chat.usage.total_tokens == chat.usage.prompt_tokens + 7
    assert [model.id for model in models.data] == ["toy", "org/toy-alias"]


async def test_the_async_client_reads_streams():
    """Streamed pieces make up the text and usage comes last, for both endpoints."""
    options = {"stream": True, "stream_options": {"include_usage": True}}
    async with async_client(serve("héllo 🙂")) as client:
        pieces = [part async for part in await client.completions.create(model="toy", prompt="hi", **options)]
        deltas = [part async for part in await client.chat.completions.create(model="toy", messages=CHAT, **options)]
    assert "".join(part.choices[0].text for part in pieces[:-1]) == "héllo 🙂"
    assert "".join(part.choices[0].delta.content or "" for part in deltas[:-1]) == "héllo 🙂"
    assert deltas[0].choices[0].delta.role == "assistant"
    assert pieces[-1].usage.completion_tokens == deltas[-1].usage.completion_tokens == 12


async def test_the_sync_client_reads_both():
    """The synchronous client reads a plain answer and a stream."""

    def call(client):
        plain = client.completions.create(model="toy", prompt="hi").choices[0].text
        with client.chat.completions.create(model="toy", messages=CHAT, stream=True) as chunks:
            return plain, "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    assert await with_sync_client(serve("hello"), call) == ("hello", "hello")


@pytest.mark.parametrize(
    ("changes", "served", "expected"),
    [
        ({"model": "other"}, {}, openai.NotFoundError),
        ({"extra_body": {"frobnicate": 1}}, {}, openai.BadRequestError),
        ({}, {"options": ApiOptions(api_keys=("another",))}, openai.AuthenticationError),
        ({"n": 2}, {"max_sequences": 1}, openai.BadRequestError),
        ({}, {"answer": lambda _: ["broken"]}, openai.InternalServerError),
        ({}, {"lifecycle": Lifecycle()}, openai.InternalServerError),
        ({"prompt": "x" * 2000}, {"options": ApiOptions(max_body_bytes=1000)}, openai.APIStatusError),
    ],
)
async def test_refusals_are_the_clients_typed_errors(changes, served, expected):
    """Each refusal surfaces as the official client's exception for it, with our message."""
    async with async_client(serve(**served)) as client:
        with pytest.raises(expected) as caught:
            await client.completions.create(**{"model": "toy", "prompt": "hi"} | changes)
    assert caught.value.body["message"]


async def test_the_client_waits_as_long_as_retry_after_says():
    """The official client retries a 503 after our Retry-After and then succeeds."""
    served = serve("hello")
    model, served.service.model = served.service.model, None
    async with async_client(served) as client:
        request = asyncio.create_task(
            client.with_options(max_retries=1).completions.create(model="toy", prompt="hi", timeout=30)
        )
        await asyncio.sleep(0.3)
        assert not request.done()
        served.service.model = model
        assert (await request).choices[0].text == "hello"


async def test_an_error_in_a_stream_raises_in_the_client():
    """A stream that fails midway raises in the official client instead of looking complete."""
    served = serve(lambda _: [65, 66, "the engine died"])
    async with async_client(served) as client:
        chunks = await client.completions.create(model="toy", prompt="hi", stream=True)
        assert [(await anext(chunks)).choices[0].text for _ in range(2)] == list(served.text.decode([65, 66]))
        with pytest.raises(openai.APIError, match="the engine died"):
            await anext(chunks)
        await chunks.close()


@pytest.mark.parametrize("scripted", [[HANG], [65, 66, HANG]], ids=["before the first token", "midway"])
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "plain"])
async def test_a_client_that_leaves_stops_the_generation(scripted, stream):
    """Closing the connection aborts the sequence at once, with or without tokens on their way."""
    served = serve(lambda _: scripted)
    body = {"model": "toy", "prompt": "hi", "stream": stream, "max_tokens": 50}
    async with listening(served.app) as url, httpx.AsyncClient(base_url=url) as client:
        asking = asyncio.create_task(client.post("/v1/completions", json=body, timeout=60))
        async with asyncio.timeout(30):
            while not served.engine.submitted:  # noqa: ASYNC110 - the engine is scripted, it has no event for this
                await asyncio.sleep(0.01)
            asking.cancel()
            await served.engine.abort_seen.wait()
    assert served.engine.aborted == [served.engine.submitted[0].request_id]


async def test_a_client_that_leaves_stops_all_its_choices():
    """Every sequence of an abandoned request is aborted."""
    served = serve(lambda _: [65, HANG])
    body = {"model": "toy", "prompt": ["a", "b"], "n": 2, "stream": True}
    async with listening(served.app) as url, httpx.AsyncClient(base_url=url) as client:
        async with client.stream("POST", "/v1/completions", json=body) as response:
            await anext(response.aiter_lines())
        async with asyncio.timeout(2):
            while len(served.engine.aborted) < 4:
                served.engine.abort_seen.clear()
                await served.engine.abort_seen.wait()
    assert sorted(served.engine.aborted) == [submit.request_id for submit in served.engine.submitted]


async def test_two_streams_interleave():
    """Two streams run at once: neither sequence goes on before the other has begun."""
    both_begun = asyncio.Barrier(2)
    served = serve(lambda _: [65, both_begun, 66])

    async def read(client):
        chunks = await client.completions.create(model="toy", prompt="hi", stream=True)
        return "".join([part.choices[0].text async for part in chunks])

    async with async_client(served) as client, asyncio.timeout(5):
        assert await asyncio.gather(read(client), read(client)) == [served.text.decode([65, 66])] * 2


async def test_probes_answer_while_a_stream_hangs():
    """A stream in progress keeps nobody from asking for health."""
    served = serve(lambda _: [65, HANG])
    body = {"model": "toy", "prompt": "hi", "stream": True}
    async with (
        listening(served.app) as url,
        httpx.AsyncClient(base_url=url, timeout=2) as client,
        client.stream("POST", "/v1/completions", json=body) as response,
    ):
        lines = response.aiter_lines()  # one that nobody holds closes the connection
        await anext(lines)
        assert (await client.get("/health")).status_code == 200


async def test_an_engine_that_dies_ends_every_stream():
    """When the engine is detached, running streams end in its error."""
    served = serve(lambda _: [65, HANG])
    async with async_client(served) as client:
        chunks = await client.completions.create(model="toy", prompt="hi", stream=True)
        await anext(chunks)
        served.service.engine.detach(EngineFailure("the engine process died"))
        with pytest.raises(openai.APIError, match="the engine process died"):
            await anext(chunks)
        await chunks.close()


async def test_a_refused_upload_is_answered_before_it_is_complete():
    """A body that announces too much is refused without waiting for it."""
    async with listening(serve(options=ApiOptions(max_body_bytes=1000)).app) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n{")
        async with asyncio.timeout(2):
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.read()  # to the end: the server closes the connection
        writer.close()
        await writer.wait_closed()
    assert head.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in head.lower()
