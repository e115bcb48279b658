"""LangChain, LiteLLM and llm, unmodified and with their own defaults, against a whole server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.coldstream import Server
from tests.conformance.conftest import API_KEY

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("default"), pytest.mark.timeout(300)]

MESSAGES = [("system", "Be brief."), ("user", "Hello")]


@pytest.fixture
def options(server: Server) -> dict[str, Any]:
    """What LangChain's classes take."""
    return {"base_url": server.url + "/v1", "api_key": API_KEY, "model": "m", "temperature": 0, "max_tokens": 8}


def plain(server: Server, **body: Any) -> str:
    """What the server says without any framework."""
    headers = {"authorization": f"Bearer {API_KEY}"}
    asked = {"model": "m", "temperature": 0, "max_tokens": 8, **body}
    path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
    (choice,) = server.client.post(path, json=asked, headers=headers).json()["choices"]
    return str(choice["text"] if "prompt" in body else choice["message"]["content"])


def test_langchain_completes(server: Server, options: dict[str, Any]):
    """OpenAI: one prompt, a stream, and two choices of each of 25 prompts, eight at a time."""
    from langchain_openai import OpenAI

    expected = plain(server, prompt="Hello")
    model = OpenAI(**options)
    assert model.invoke("Hello") == expected
    assert "".join(model.stream("Hello")) == expected
    several = OpenAI(**options | {"temperature": 1}, n=2, best_of=2, seed=7, batch_size=8).generate(
        [f"Item {i}" for i in range(25)]
    )
    assert [len(choices) for choices in several.generations] == [2] * 25
    assert several.llm_output["token_usage"]["completion_tokens"] > 0


async def test_langchain_chats(server: Server, options: dict[str, Any]):
    """ChatOpenAI: whole, streamed with usage, asynchronous, with logprobs, and with what a tool gave."""
    from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
    from langchain_openai import ChatOpenAI

    messages = [{"role": role, "content": text} for role, text in MESSAGES]
    expected = plain(server, messages=messages)
    model = ChatOpenAI(**options, stream_usage=True)
    answer = model.invoke(MESSAGES)
    assert answer.content == expected
    assert answer.usage_metadata["output_tokens"] == 8
    chunks = list(model.stream(MESSAGES))
    assert "".join(chunk.content for chunk in chunks) == expected
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) == 8
    assert (await model.ainvoke(MESSAGES)).content == expected
    scored = model.bind(logprobs=True, top_logprobs=2).invoke(MESSAGES)
    assert len(scored.response_metadata["logprobs"]["content"]) == 8
    call = {"name": "weather", "args": {"city": "Paris"}, "id": "call_1"}
    told = [HumanMessage("Hi"), AIMessage("", tool_calls=[call]), ToolMessage("sunny", tool_call_id="call_1")]
    tool = {"name": "weather", "description": "Tells it.", "parameters": {"type": "object", "properties": {}}}
    assert model.bind_tools([tool]).invoke(told).content


def test_litellm(server: Server, monkeypatch: pytest.MonkeyPatch):
    """Its completions and chats, whole and streamed; a refusal is its BadRequestError."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    options = {"api_base": server.url + "/v1", "api_key": API_KEY, "temperature": 0, "max_tokens": 8}
    messages = [{"role": role, "content": text} for role, text in MESSAGES]
    expected = plain(server, messages=messages)
    chat = litellm.completion(model="openai/m", messages=messages, **options)
    assert chat.choices[0].message.content == expected
    chunks = litellm.completion(model="openai/m", messages=messages, stream=True, **options)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    text = litellm.text_completion(model="text-completion-openai/m", prompt="Hello", **options)
    assert text.choices[0].text == plain(server, prompt="Hello")
    with pytest.raises(litellm.BadRequestError, match="response_format"):
        litellm.completion(
            model="openai/m", messages=messages, response_format={"type": "json_object"}, num_retries=0, **options
        )


@pytest.mark.parametrize("flags", [(), ("--no-stream",)], ids=["streamed", "whole"])
def test_llm(server: Server, tmp_path: Path, flags: tuple[str, ...]):
    """The command line tool, told of the server as its documentation says."""
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: tiny\n  model_name: m\n  api_base: {server.url}/v1\n  api_key_name: coldstream\n"
    )
    (tmp_path / "keys.json").write_text(f'{{"coldstream": "{API_KEY}"}}')
    command = [sys.executable, "-m", "llm", "-m", "tiny", "-o", "temperature", "0", "-o", "max_tokens", "8", *flags]
    environ = {**os.environ, "LLM_USER_PATH": str(tmp_path)}
    done = subprocess.run([*command, "Hello"], capture_output=True, text=True, env=environ, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == plain(server, messages=[{"role": "user", "content": "Hello"}]).strip()
