"""Every request that is refused: which status, which parameter, which envelope."""

import asyncio

import pytest

from app.api.server import ApiOptions
from app.lifecycle import Lifecycle
from tests.unit.scripted_engine import serve

COMPLETION = {"model": "toy", "prompt": "hi"}
CHAT = {"model": "toy", "messages": [{"role": "user", "content": "hi"}]}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
COMPLETIONS_PATH, CHAT_PATH = "/v1/completions", "/v1/chat/completions"

WRONG_ANYWHERE = [
    ({"frobnicate": 1}, "frobnicate"),
    ({"model": 5}, "model"),
    ({"model": None}, "model"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": "1"}, "n"),
    ({"n": True}, "n"),
    ({"n": 1.0}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 1.5}, "top_k"),
    ({"seed": 2**63}, "seed"),
    ({"seed": "1"}, "seed"),
    ({"stop": 5}, "stop"),
    ({"stop": ""}, "stop[0]"),
    ({"stop": ["a", 5]}, "stop[1]"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
    ({"stop_token_ids": 3}, "stop_token_ids"),
    ({"ignore_eos": 1}, "ignore_eos"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"stream": True, "stream_options": {"other": True}}, "stream_options.other"),
    ({"user": 5}, "user"),
    ({"frequency_penalty": 2.1}, "frequency_penalty"),
    ({"presence_penalty": "1"}, "presence_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"min_p": 1.1}, "min_p"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"max_tokens": 3, "min_tokens": 4}, "min_tokens"),
    ({"allowed_token_ids": []}, "allowed_token_ids"),
    ({"allowed_token_ids": ["5"]}, "allowed_token_ids[0]"),
    ({"allowed_token_ids": [5, 258]}, "allowed_token_ids"),
    ({"allowed_token_ids": [97, 97], "stop_token_ids": [97], "max_tokens": 5, "min_tokens": 1}, "allowed_token_ids"),
    ({"prompt_logprobs": -1}, "prompt_logprobs"),
    ({"logit_bias": 5}, "logit_bias"),
    ({"logit_bias": {"five": 1}}, "logit_bias"),
    ({"logit_bias": {"-5": 1}}, "logit_bias"),
    ({"logit_bias": {"5": 1, "05": 2}}, "logit_bias"),
    ({"logit_bias": {"258": 1}}, "logit_bias"),
    ({"logit_bias": {"5": 101}}, "logit_bias[5]"),
    ({"logit_bias": {"5": "1"}}, "logit_bias[5]"),
    ({"logprobs": "2"}, "logprobs"),
    ({"logprobs": 1.0}, "logprobs"),
    ({"prompt_logprobs": 21}, "prompt_logprobs"),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
    ({"bad_words": "no"}, "bad_words"),
    ({"bad_words": [""]}, "bad_words[0]"),
    ({"bad_words": [" "]}, "bad_words"),
    ({"request_id": "a b"}, "request_id"),
    ({"skip_special_tokens": 1}, "skip_special_tokens"),
    ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
    ({"use_beam_search": True}, "use_beam_search"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
]
WRONG_COMPLETIONS = [
    ({"prompt": None}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": True}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": ["a", 5]}, "prompt"),
    ({"prompt": [True]}, "prompt"),
    ({"prompt": [[1], "a"]}, "prompt"),
    ({"prompt": [1, -1]}, "prompt"),
    ({"prompt": [258]}, "prompt"),
    ({"prompt": [[1], [2**70]]}, "prompt"),
    ({"prompt": [[1]] * 1025}, "prompt"),
    ({"prompt": [[1]] * 9, "n": 128}, "prompt"),
    ({"echo": 1}, "echo"),
    ({"best_of": 2}, "best_of"),
    ({"best_of": 1, "n": 2}, "best_of"),
    ({"logprobs": -1}, "logprobs"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"suffix": "end"}, "suffix"),
    ({"suffix": "end", "prompt": [1]}, "suffix"),
    ({"suffix": "end", "echo": True}, "suffix"),
    ({"max_completion_tokens": 5}, "max_completion_tokens"),
]
WRONG_CHATS = [
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
    ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "tool", "tool_call_id": "1"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "x", "tool_call_id": "1"}]}, "messages[0].tool_call_id"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "assistant", "tool_calls": []}]}, "messages[0].content"),
    ({"messages": [{"role": "assistant", "tool_calls": [CALL]}]}, "messages"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [CALL | {"type": "custom"}]}]},
        "messages[0].tool_calls[0].type",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [CALL | {"function": {"name": "f", "arguments": "[]"}}]}]},
        "messages[0].tool_calls[0].function.arguments",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [CALL | {"function": {"name": "f", "arguments": "{"}}]}]},
        "messages[0].tool_calls[0].function.arguments",
    ),
    ({"messages": [{"role": "user", "content": "x", "mood": "y"}]}, "messages[0].mood"),
    ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].id"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "text": ""}]}]}, "messages[0].content[0].type"),
    ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
    ({"verbosity": "low"}, "verbosity"),
    ({"moderation": {"model": "m"}}, "moderation"),
    ({"prompt_cache_options": {"mode": "explicit"}}, "prompt_cache_options"),
    ({"prompt_cache_retention": "24h"}, "prompt_cache_retention"),
    ({"prompt_cache_key": 5}, "prompt_cache_key"),
    ({"safety_identifier": 5}, "safety_identifier"),
    ({"logprobs": 1}, "logprobs"),
    ({"top_logprobs": 1}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"bos_token": ""}}, "chat_template_kwargs"),
    ({"chat_template": "{{ 1 }}"}, "chat_template"),
    ({"prompt": "hi"}, "prompt"),
]
WRONG = (
    [(COMPLETIONS_PATH, COMPLETION | change, param) for change, param in WRONG_ANYWHERE + WRONG_COMPLETIONS]
    + [(CHAT_PATH, CHAT | change, param) for change, param in WRONG_ANYWHERE + WRONG_CHATS]
)  # fmt: skip


@pytest.mark.parametrize(("path", "body", "param"), WRONG)
async def test_a_wrong_parameter_is_a_400_that_names_it(path, body, param):
    """Whatever is unknown, mistyped, out of range or not honoured is refused by name before the engine hears."""
    served = serve()
    async with served.client() as client:
        response = await client.post(path, json=body)
    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, None)
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert served.engine.submitted == []


NEUTRAL_ANYWHERE = [
    {"frequency_penalty": 0, "presence_penalty": 0.0, "repetition_penalty": 1.0, "min_p": 0.0, "logit_bias": {}},
    {"frequency_penalty": None, "logit_bias": None},
    {"stop": [], "user": "ann", "temperature": 1, "stream_options": None},
]
NEUTRAL = (
    [(COMPLETIONS_PATH, COMPLETION | change) for change in NEUTRAL_ANYWHERE]
    + [(CHAT_PATH, CHAT | change) for change in NEUTRAL_ANYWHERE]
    + [
        (COMPLETIONS_PATH, COMPLETION | {"echo": False, "best_of": 2, "n": 2, "suffix": None, "logprobs": None}),
        (CHAT_PATH, CHAT | {"response_format": {"type": "text"}, "tools": [], "tool_choice": "none"}),
        (CHAT_PATH, CHAT | {"safety_identifier": "ann", "prompt_cache_key": "key", "verbosity": "medium"}),
        (CHAT_PATH, CHAT | {"logprobs": False, "top_logprobs": None, "parallel_tool_calls": True}),
    ]
)


@pytest.mark.parametrize(("path", "body"), NEUTRAL)
async def test_a_neutral_value_is_accepted(path, body):
    """A parameter that is not honoured yet may be sent with the value that changes nothing."""
    async with serve().client() as client:
        response = await client.post(path, json=body)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("content", "content_type", "words"),
    [
        (b'{"model": "toy", ', "application/json", "not JSON"),
        (b"", "application/json", "JSON object"),
        (b"[]", "application/json", "JSON object"),
        (b'"text"', "application/json", "JSON object"),
        (b'{"model": "toy", "prompt": "x"}', "text/plain", "application/json"),
        (b"\xff\xfe", "application/json", "body"),
        (b"[" * 100_000, "application/json", "body"),
    ],
    ids=["cut", "empty", "list", "string", "wrong type", "not utf-8", "too deep"],
)
async def test_a_body_that_is_no_json_object_is_a_400(content, content_type, words):
    """A body that cannot be read is the client's error, in the envelope."""
    async with serve().client() as client:
        response = await client.post(COMPLETIONS_PATH, content=content, headers={"content-type": content_type})
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]


async def test_a_number_that_is_not_finite_is_a_400():
    """NaN, which Python's JSON lets through, is no temperature."""
    async with serve().client() as client:
        headers = {"content-type": "application/json"}
        body = b'{"model": "toy", "prompt": "x", "temperature": NaN}'
        response = await client.post(COMPLETIONS_PATH, content=body, headers=headers)
    assert response.json()["error"]["param"] == "temperature"


@pytest.mark.parametrize(
    ("body", "status"), [(r'{"model":"toy","prompt":"\ud83d"}', 400), (r'{"model":"\ud83d","prompt":"x"}', 404)]
)
async def test_an_unpaired_surrogate_is_refused(body, status):
    """Text that is no Unicode is refused, and the refusal itself can be written."""
    async with serve().client() as client:
        response = await client.post(COMPLETIONS_PATH, content=body, headers={"content-type": "application/json"})
    assert response.status_code == status
    assert response.json()["error"]["message"]


@pytest.mark.parametrize("path_and_body", [(COMPLETIONS_PATH, COMPLETION), (CHAT_PATH, CHAT)])
async def test_an_unknown_model_is_a_404_that_lists_the_served_ones(path_and_body):
    """A wrong model name is answered with the right ones."""
    path, body = path_and_body
    async with serve().client() as client:
        response = await client.post(path, json=body | {"model": "gpt-9"})
    error = response.json()["error"]
    assert response.status_code == 404
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "toy, org/toy-alias" in error["message"]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v2/x", 404), ("GET", COMPLETIONS_PATH, 405)])
async def test_a_wrong_path_or_method_has_the_envelope_too(method, path, status):
    """404 and 405 of the router are envelopes, not the framework's own shape."""
    async with serve().client() as client:
        response = await client.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(("path", "body"), [(COMPLETIONS_PATH, COMPLETION), (CHAT_PATH, CHAT), ("/v1/models", None)])
async def test_before_it_is_ready_the_server_says_when_to_come_back(path, body):
    """While the model loads, every model endpoint is a 503 with Retry-After."""
    async with serve(lifecycle=Lifecycle()).client() as client:
        response = await client.request("POST" if body else "GET", path, json=body)
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    assert response.json()["error"]["code"] == "not_ready"


async def test_a_lost_engine_is_a_503():
    """With the engine detached a request is refused as not ready."""
    served = serve()
    served.service.engine._send = None
    async with served.client() as client:
        response = await client.post(COMPLETIONS_PATH, json=COMPLETION)
    assert response.status_code == 503


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", "Bearer ", "Basic key-1", "key-1", "Bearer kéy"])
async def test_without_a_valid_key_everything_but_probes_is_a_401(authorization):
    """A missing, wrong or misplaced key is a 401 that says which scheme is meant."""
    headers = {} if authorization is None else {"authorization": authorization.encode()}
    async with serve(options=ApiOptions(api_keys=("key-1", "key-2"))).client(headers=headers) as client:
        for path in ("/v1/models", "/docs", "/nowhere"):
            response = await client.get(path)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"]["code"] == "invalid_api_key"
        for path in ("/livez", "/readyz", "/health", "/startupz"):
            assert (await client.get(path)).status_code == 200


@pytest.mark.parametrize("key", ["key-1", "key-2"])
async def test_any_of_the_keys_opens(key):
    """Each configured key is valid."""
    headers = {"authorization": f"Bearer {key}"}
    async with serve(options=ApiOptions(api_keys=("key-1", "key-2"))).client(headers=headers) as client:
        assert (await client.get("/v1/models")).status_code == 200


def test_options_do_not_show_the_keys():
    """The options' repr counts keys instead of printing them."""
    assert "secret" not in repr(ApiOptions(api_keys=("secret",)))


@pytest.mark.parametrize("announced", [True, False], ids=["content-length", "chunked"])
async def test_a_body_over_the_cap_is_a_413(announced):
    """The cap holds whether the body's size is announced or only seen."""
    body = b'{"model": "toy", "prompt": "' + b"x" * 2000 + b'"}'

    async def pieces():
        for start in range(0, len(body), 100):
            yield body[start : start + 100]

    async with serve(options=ApiOptions(max_body_bytes=1000)).client() as client:
        response = await client.post(COMPLETIONS_PATH, content=body if announced else pieces())
        assert (await client.post(COMPLETIONS_PATH, json=COMPLETION)).status_code == 200
    assert response.status_code == 413
    assert "1000 bytes" in response.json()["error"]["message"]


async def test_what_nobody_expected_is_a_500_that_gives_nothing_away(monkeypatch):
    """A bug is a 500 in the envelope, without the exception's text, and with the request's id."""
    served = serve()

    def broken(*_):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(served.service, "ready_model", broken)
    async with served.client() as client:
        response = await client.get("/v1/models", headers={"x-request-id": "abc"})
    assert response.status_code == 500
    assert "secret" not in response.text
    assert response.json()["error"]["type"] == "server_error"
    assert response.headers["x-request-id"] == "abc"


@pytest.mark.parametrize(("sent", "kept"), [("req-7", True), (None, False), ("a b", False), ("x" * 200, False)])
async def test_every_answer_has_a_request_id(sent, kept):
    """A client's sane X-Request-Id is echoed; otherwise one is made, for errors as well."""
    headers = {} if sent is None else {"x-request-id": sent}
    async with serve(options=ApiOptions(api_keys=("key",))).client(headers=headers) as client:
        ids = [(await client.get(path)).headers["x-request-id"] for path in ("/nowhere", "/v1/models")]
    assert all((request_id == sent) is kept for request_id in ids)
    assert all(len(request_id) == 32 for request_id in ids if not kept)


async def test_more_sequences_than_the_server_ever_takes_are_a_400_before_any_work():
    """A hundred thousand prompts are refused at once, by number, and none is encoded."""
    served = serve()
    prompts = ["x"] * 100_000
    async with served.client() as client, asyncio.timeout(20):
        response = await client.post(COMPLETIONS_PATH, json={"model": "toy", "prompt": prompts})
    assert response.status_code == 400
    assert "100000" in response.json()["error"]["message"]
    assert served.engine.submitted == []


async def test_a_stop_token_id_out_of_range_is_a_400_and_holds_no_place():
    """What cannot be a token id is refused, and the next request finds the engine free."""
    served = serve(max_sequences=1)
    async with served.client() as client:
        for _ in range(3):
            response = await client.post(COMPLETIONS_PATH, json={**COMPLETION, "stop_token_ids": [2**64]})
            assert response.status_code == 400
        assert (await client.post(COMPLETIONS_PATH, json=COMPLETION)).status_code == 200
