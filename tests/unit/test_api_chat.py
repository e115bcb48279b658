"""POST /v1/chat/completions, plain and streamed, against a scripted engine."""

import json

import pytest

from app.api.models import system_fingerprint
from tests.unit.scripted_engine import MAX_MODEL_LEN, events, serve, usage

PATH = "/v1/chat/completions"
BODY = {"model": "toy", "messages": [{"role": "user", "content": "hi"}]}


async def test_an_answer_has_openais_shape():
    """A plain chat completion is one assistant message with finish reason and usage."""
    served = serve("hello")
    async with served.client() as client:
        response = await client.post(PATH, json=BODY)
    answer = response.json()
    prompt_tokens = len(served.engine.submitted[0].prompt_token_ids)
    assert answer.pop("id").startswith("chatcmpl-")
    assert answer.pop("created") > 1_700_000_000
    assert answer == {
        "object": "chat.completion",
        "model": "toy",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "hello"},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "system_fingerprint": system_fingerprint("toy", "float32"),
        "usage": usage(prompt_tokens, 6, prompt_tokens // 2),
    }


async def test_the_prompt_is_the_templates_and_nothing_more():
    """Messages go through the template with a generation prompt; the tokenizer adds no BOS of its own."""
    served = serve()
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "Ann"},
    ]
    async with served.client() as client:
        await client.post(PATH, json={**BODY, "messages": messages})
    prompt = served.text.decode(served.engine.submitted[0].prompt_token_ids)
    assert prompt == "<system>be brief\n<user>a\nb\n<assistant>"
    assert served.engine.submitted[0].prompt_token_ids == served.text.encode(prompt, False)


async def test_an_assistant_message_may_be_sent_back_as_it_came():
    """The nulls and empty lists that clients add to our own messages are no parameters."""
    message = {"role": "assistant", "content": "hello", "refusal": None, "tool_calls": [], "annotations": None}
    async with serve().client() as client:
        response = await client.post(PATH, json={**BODY, "messages": [*BODY["messages"], message]})
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("limits", "max_tokens"),
    [
        ({}, None),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6}, 6),
        ({"max_tokens": 7, "max_completion_tokens": 7}, 7),
    ],
)
async def test_max_tokens_has_two_names_and_defaults_to_the_rest(limits, max_tokens):
    """Either name limits the answer; without one it may fill the context."""
    served = serve()
    async with served.client() as client:
        await client.post(PATH, json={**BODY, **limits})
    submit = served.engine.submitted[0]
    assert submit.sampling.max_tokens == (max_tokens or MAX_MODEL_LEN - len(submit.prompt_token_ids))


async def test_a_stream_tells_the_role_then_the_text_then_the_reason():
    """The first chunk has the role, the last one nothing but the finish reason, those between the text."""
    async with serve("hé").client() as client:
        response = await client.post(PATH, json={**BODY, "stream": True})
    *chunks, done = events(response.text)
    choices = [json.loads(chunk)["choices"][0] for chunk in chunks]
    assert done == "[DONE]"
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": ""},
        {"content": "h"},
        {"content": "é"},
        {},
    ]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "stop"]
    assert all(json.loads(chunk)["object"] == "chat.completion.chunk" for chunk in chunks)


async def test_usage_is_a_last_chunk_without_choices_only_if_asked_for():
    """Every chunk has a choice, unless include_usage asks for one more that has only usage."""
    async with serve("a").client() as client:
        plain = await client.post(PATH, json={**BODY, "stream": True})
        asked = await client.post(PATH, json={**BODY, "stream": True, "stream_options": {"include_usage": True}})
    assert all(json.loads(chunk)["choices"] and "usage" not in chunk for chunk in events(plain.text)[:-1])
    *chunks, last = (json.loads(chunk) for chunk in events(asked.text)[:-1])
    assert all(chunk["choices"] and chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 2


async def test_every_choice_of_a_stream_has_its_own_role_chunk():
    """With n=2 each index starts with a role chunk and ends with a reason."""
    async with serve("ab").client() as client:
        response = await client.post(PATH, json={**BODY, "n": 2, "stream": True})
    choices = [json.loads(chunk)["choices"][0] for chunk in events(response.text)[:-1]]
    for index in (0, 1):
        own = [choice for choice in choices if choice["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert own[-1]["finish_reason"] == "stop"
        assert "".join(choice["delta"].get("content", "") for choice in own) == "ab"


async def test_what_the_template_refuses_is_a_400_with_its_words():
    """A template that raises on these messages is the client's error, in the template's words."""
    async with serve().client() as client:
        response = await client.post(PATH, json={**BODY, "messages": [{"role": "assistant", "content": "x"}]})
    assert response.status_code == 400
    assert "the user speaks first" in response.json()["error"]["message"]
    assert response.json()["error"]["param"] == "messages"


async def test_a_model_without_a_template_refuses_chats():
    """Without a chat template a chat is a 400 that points to completions."""
    async with serve(template=None).client() as client:
        response = await client.post(PATH, json=BODY)
    assert response.status_code == 400
    assert "/v1/completions" in response.json()["error"]["message"]
