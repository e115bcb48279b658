"""The official client against a whole server: its typed errors, its retries, headers, timeouts and helpers."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest

from tests.coldstream import Server, serving, wait_for
from tests.conformance.conftest import API_KEY, MAX_WAITING_REQUESTS
from tools.blob_server import BlobServer

ASKED = {"model": "m", "prompt": "Hello", "max_tokens": 4, "temperature": 0}
# About ten seconds of the tiny model.
LONG = {"model": "m", "prompt": "Hello", "max_tokens": 8000, "extra_body": {"ignore_eos": True}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@contextmanager
def connected(server: Server, **options: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(**{"base_url": server.url + "/v1", "api_key": API_KEY, "max_retries": 0} | options) as client:
        yield client


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    """Asks once."""
    with connected(server) as client:
        yield client


def wait_until_idle(client: openai.OpenAI) -> None:
    """Return once the server takes as many sequences as it ever does; those of clients that left are gone by then."""

    def takes_all() -> bool:
        try:
            client.completions.create(**ASKED | {"max_tokens": 1}, n=MAX_WAITING_REQUESTS)
        except openai.RateLimitError:
            return False
        return True

    wait_for(takes_all)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize(
    ("changes", "expected", "code"),
    [
        ({"model": "other"}, openai.NotFoundError, "model_not_found"),
        ({"max_tokens": -1}, openai.BadRequestError, None),
        ({"prompt": "x" * (5 << 20)}, openai.APIStatusError, None),
        ({"extra_headers": {"Authorization": "Bearer wrong"}}, openai.AuthenticationError, "invalid_api_key"),
    ],
    ids=["not found", "bad request", "too large", "wrong key"],
)
def test_refusals_are_typed(client, changes, expected, code, stream):
    """Each refusal is the client's exception for it, with our message, type, code and request id."""
    with pytest.raises(expected) as caught:
        client.completions.create(**ASKED | changes, stream=stream)
    error = caught.value
    assert type(error) is expected
    assert error.code == code
    assert error.type in ("invalid_request_error", "authentication_error")
    assert error.body["message"] in str(error)
    assert len(error.request_id) == 32


def test_too_much_at_once_is_a_rate_limit_that_passes(client, server):
    """With the engine full, RateLimitError says when to come back; a client that retries gets its answer."""
    with client.completions.create(**LONG, n=MAX_WAITING_REQUESTS, stream=True) as chunks:
        next(iter(chunks))
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(**ASKED)
        assert int(caught.value.response.headers["retry-after"]) == 1
        with connected(server, max_retries=10) as patient:
            answers: list[Any] = []
            waiting = threading.Thread(target=lambda: answers.append(patient.completions.create(**ASKED)))
            waiting.start()
            time.sleep(0.2)
            chunks.close()  # which aborts them all
            waiting.join(timeout=30)
    assert answers[0].choices[0].finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_a_client_that_times_out_takes_its_sequence_along(client, stream):
    """APITimeoutError, and the engine is free for others at once."""
    # A stream's timeout is for each chunk, so it has to be one that the first cannot meet: that of the longest prompt.
    prompt = [each * (7 + stream) % 2000 for each in range(8000)]  # and of which nothing is cached
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.1).completions.create(**LONG | {"prompt": prompt}, stream=stream)
    wait_until_idle(client)


def test_headers_are_there_for_those_who_look(client):
    """with_raw_response and with_streaming_response show X-Request-Id, the client's own where it sent one."""
    raw = client.completions.with_raw_response.create(**ASKED, extra_headers={"X-Request-Id": "job-7"})
    assert (raw.headers["x-request-id"], raw.request_id) == ("job-7", "job-7")
    assert raw.parse().choices[0].finish_reason == "length"
    assert len(client.completions.create(**ASKED)._request_id) == 32
    with client.chat.completions.with_streaming_response.create(
        model="m", messages=[{"role": "user", "content": "hi"}], max_tokens=3, stream=True
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert len(response.request_id) == 32
        assert [line for line in response.iter_lines() if line][-1] == "data: [DONE]"


def test_models_are_listed_and_retrieved(client):
    """Every name is a model of its own, and an unknown one is NotFoundError."""
    assert [model.id for model in client.models.list()] == ["m", "alias"]
    assert client.models.retrieve("alias").id == "alias"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_the_stream_helper_assembles_a_chat(client):
    """client.chat.completions.stream gives its events, and in the end what a plain answer would have been."""
    asked = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
    # What it would not take for whole is an answer that was cut: so this one ends in a stop string.
    said = client.chat.completions.create(**asked, max_tokens=8).choices[0].message.content
    asked |= {"stop": said[8:12], "max_tokens": 100}
    with client.chat.completions.stream(**asked, logprobs=True, stream_options={"include_usage": True}) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    plain = client.chat.completions.create(**asked, logprobs=True)
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == plain.choices[0].message.content
    assert final.usage.total_tokens == plain.usage.total_tokens
    scores = [[entry.logprob for entry in answer.choices[0].logprobs.content] for answer in (final, plain)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_what_a_tool_gave_is_sent_back(client):
    """A conversation with calls and their answers, as the client's types have it, is answered."""
    messages: list[Any] = [
        {"role": "user", "content": "How is the weather in Paris?"},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    asked = {"model": "m", "max_tokens": 2, "tools": [TOOL]}
    answer = client.chat.completions.create(**asked, messages=messages)
    messages += [answer.choices[0].message, {"role": "user", "content": "Thanks!"}]
    longer = client.chat.completions.create(**asked, messages=messages)
    assert longer.usage.prompt_tokens > answer.usage.prompt_tokens


def test_a_prompt_of_the_whole_context_is_scored(client):
    """With max_tokens 0 the engine takes as many tokens as the model has places, and a token more is a 400."""
    prompt = [each % 2000 for each in range(8192)]
    answer = client.completions.create(model="m", prompt=prompt, max_tokens=0, echo=True, logprobs=1)
    assert len(answer.choices[0].logprobs.token_logprobs) == 8192
    assert answer.usage.completion_tokens == 0
    for refused in ({"prompt": [*prompt, 1], "max_tokens": 0}, {"prompt": prompt, "max_tokens": 1}):
        with pytest.raises(openai.BadRequestError, match="8192"):
            client.completions.create(model="m", echo=True, **refused)


def test_a_client_that_asks_while_the_weights_load_gets_its_answer(tiny_model, tmp_path):
    """503 with a Retry-After that the client obeys, until the model is there; without retries it is InternalServerError.

    The same server gives a request a second: what takes longer is an error, and within a stream one as well. And what a
    request does not say is as the checkpoint's generation_config.json has it.
    """
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, "top_k": 1}))
    flags = ("--dtype", "float32", "--request-deadline", "1", "--api-key", API_KEY)
    with (
        BlobServer(folder, bytes_per_s=400e3) as source,
        serving(source.url, *flags, log_path=tmp_path / "log") as server,
    ):
        wait_for(lambda: answers(server))
        with connected(server) as client:
            with pytest.raises(openai.InternalServerError) as caught:
                client.completions.create(**ASKED)
            assert (caught.value.status_code, caught.value.code) == (503, "not_ready")
            assert 1 <= int(caught.value.response.headers["retry-after"]) <= 120
            answer = client.with_options(max_retries=20).completions.create(**ASKED)
            assert answer.choices[0].finish_reason == "length"
            asked = ASKED | {"temperature": None, "max_tokens": 16}
            texts = [
                client.completions.create(**asked | {"temperature": each}).choices[0].text for each in (0, 1, None)
            ]
            assert texts == [texts[0]] * 3
            freely = client.completions.create(**asked, extra_body={"top_k": 0})
            assert freely.choices[0].text != texts[0]
            _check_deadline(client)


def answers(server: Server) -> bool:
    try:
        return server.health()[0] == 503
    except httpx.TransportError:
        return False


def _check_deadline(client: openai.OpenAI) -> None:
    start_s = time.monotonic()
    with pytest.raises(openai.InternalServerError) as late:
        client.with_options(max_retries=2).completions.create(**LONG)
    assert (late.value.status_code, late.value.code) == (504, "deadline_exceeded")
    assert time.monotonic() - start_s < 3  # so it was not tried again
    chunks = client.completions.create(**LONG, stream=True)
    assert next(chunks).choices[0].finish_reason is None
    with pytest.raises(openai.APIError, match="took longer than 1 s") as failed:
        list(chunks)
    assert failed.value.code == "deadline_exceeded"
