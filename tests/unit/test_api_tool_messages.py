"""Messages about tools: they reach templates that know them, and no others."""

import json

import pytest

from tests.unit.scripted_engine import serve

PATH = "/v1/chat/completions"
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
CHAT = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
]
# The way of Qwen, Hermes and Llama: calls by their objects, answers by their role.
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.tool_calls %}{% for call in m.tool_calls %}{{ call.function | tojson }}{% endfor %}"
    "{% elif m.role == 'tool' %}{{ m.tool_call_id }}: {{ m.content }}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
)


async def ask(messages, template=TEMPLATE):
    """The response, and the prompt that the engine got, if it got one."""
    served = serve(template=template)
    async with served.client() as client:
        response = await client.post(PATH, json={"model": "toy", "messages": messages})
    prompts = [served.text.decode(submit.prompt_token_ids) for submit in served.engine.submitted]
    return response, prompts


async def test_calls_and_their_answers_reach_the_template():
    """The template sees arguments as an object, the call's id, and "" where nothing was said."""
    response, prompts = await ask(CHAT)
    assert response.status_code == 200, response.text
    call = json.dumps({"name": "weather", "arguments": {"city": "Paris"}})
    assert prompts == [f"<user>hi<assistant>{call}<tool>call_1: sunny"]


@pytest.mark.parametrize(
    ("messages", "word"),
    [(CHAT[:2], "tool_calls"), ([CHAT[0], CHAT[2]], "messages of tools")],
    ids=["a call", "an answer"],
)
async def test_a_template_that_knows_no_tools_refuses_both(messages, word):
    """What a template would leave out, or never shows, is a 400."""
    response, prompts = await ask(messages, template="{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}")
    assert (response.status_code, response.json()["error"]["param"]) == (400, "messages")
    assert word in response.json()["error"]["message"]
    assert prompts == []


async def test_empty_arguments_are_no_arguments():
    """A call without arguments is written as "" by some clients."""
    call = CALL | {"function": {"name": "now", "arguments": ""}}
    _, prompts = await ask([CHAT[0], {"role": "assistant", "content": "x", "tool_calls": [call]}])
    assert prompts == ['<user>hi<assistant>{"name": "now", "arguments": {}}']


async def test_a_template_may_be_asked_what_it_makes_of_tools():
    """/tokenize takes the same messages."""
    async with serve(template=TEMPLATE).client() as client:
        response = await client.post("/tokenize", json={"messages": CHAT})
    assert response.status_code == 200, response.text
