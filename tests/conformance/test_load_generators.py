"""What load generators send and how they read it, written down from vllm bench serve, guidellm, lm-eval and llmperf."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.coldstream import Server
from tests.conformance.conftest import API_KEY

HEADERS = {"authorization": f"Bearer {API_KEY}", "x-request-id": "bench-1"}


def lines(server: Server, path: str, body: dict[str, Any]) -> list[str]:
    with server.client.stream("POST", path, json=body, headers=HEADERS) as response:
        assert response.status_code == 200
        assert response.headers["x-request-id"] == "bench-1"
        return [line for line in response.iter_lines() if line]


@pytest.mark.parametrize("chat", [False, True], ids=["completions", "chat"])
def test_vllm_bench_serve(server: Server, chat: bool):
    """The first chunk with choices is the first token; usage is read from a chunk without any."""
    body: dict[str, Any] = {"model": "m", "temperature": 0.0, "repetition_penalty": 1.0, "stream": True}
    body |= {"stream_options": {"include_usage": True}, "ignore_eos": True}
    if chat:
        content = [{"type": "text", "text": "Hello"}]
        body |= {"messages": [{"role": "user", "content": content}], "max_completion_tokens": 12}
    else:
        body |= {"prompt": "Hello", "max_tokens": 12, "logprobs": None}
    found = lines(server, "/v1/chat/completions" if chat else "/v1/completions", body)
    first_token_at = output_tokens = None
    for number, line in enumerate(found):
        data = line.removeprefix("data: ")
        if data == "[DONE]":
            continue
        chunk = json.loads(data)
        if chunk["choices"]:
            first_token_at = number if first_token_at is None else first_token_at
        elif usage := chunk.get("usage"):
            output_tokens = usage["completion_tokens"]
    assert (first_token_at, output_tokens) == (0, 12)
    assert found[-1] == "data: [DONE]"


def test_guidellm(server: Server):
    """It wants a 2xx of /health, a model in /v1/models, a running usage and exactly `data: [DONE]`."""
    assert server.health()[0] == 200
    assert server.client.get("/v1/models", headers=HEADERS).json()["data"][0]["id"] == "m"
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"model": "m", "prompt": "Hello", "stream": True, "stream_options": options, "max_tokens": 12}
    found = lines(server, "/v1/completions", body | {"stop": None, "ignore_eos": True})
    usages = [json.loads(line.removeprefix("data: "))["usage"]["completion_tokens"] for line in found[:-1]]
    assert usages == sorted(usages)
    assert usages[-1] == 12
    assert found[-1] == "data: [DONE]"


def test_llmperf(server: Server):
    """It reads choices[0] of every chunk, so usage is never told unasked."""
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "stream": True, "max_tokens": 5}
    found = lines(server, "/v1/chat/completions", body)
    assert all(json.loads(line.removeprefix("data: "))["choices"][0] for line in found[:-1])


def test_lm_eval(server: Server):
    """Lists of token ids are scored in one request, mapped by index; greedy tokens are the likeliest to the bit."""
    prompts = [[300, 301, 302], [400, 401], [500, 501, 502, 503]]
    body = {"model": "m", "prompt": prompts, "echo": True, "max_tokens": 1, "logprobs": 1, "temperature": 0}
    choices = server.client.post("/v1/completions", json=body | {"seed": 1234}, headers=HEADERS).json()["choices"]
    for choice, prompt in zip(sorted(choices, key=lambda each: each["index"]), prompts, strict=True):
        scores, tops = choice["logprobs"]["token_logprobs"], choice["logprobs"]["top_logprobs"]
        assert len(scores) == len(tops) == len(prompt) + 1
        assert (scores[0], tops[0]) == (None, None)
        assert scores[-1] == max(tops[-1].values())
    assert "tokenizer_class" in server.client.get("/tokenizer_info", headers=HEADERS).json()
    assert server.client.post("/tokenize", json={"prompt": "Hello"}, headers=HEADERS).json()["tokens"]
