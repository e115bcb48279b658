"""/tokenize, /detokenize, /tokenizer_info and /version, as vLLM's clients use them."""

from importlib.metadata import version

import pytest

from app.lifecycle import Lifecycle
from tests.unit.scripted_engine import BOS, EOS, MAX_MODEL_LEN, serve

MESSAGES = [{"role": "user", "content": "hi"}]


async def post(served, path, body):
    async with served.client() as client:
        return await client.post(path, json=body)


@pytest.mark.parametrize(("adds", "begin"), [(None, [BOS]), (True, [BOS]), (False, [])])
async def test_a_prompt_is_tokenized_as_a_completions(adds, begin):
    """Count, context and ids; the tokenizer's special tokens unless they are not wanted."""
    served = serve()
    ids = [*begin, *served.text.encode("hé", False)]
    answer = (await post(served, "/tokenize", {"prompt": "hé", "add_special_tokens": adds})).json()
    assert answer == {"count": len(ids), "max_model_len": MAX_MODEL_LEN, "tokens": ids, "token_strs": None}


async def test_a_chat_is_tokenized_as_the_chat_endpoint_does():
    """Messages go through the template, with the parameters that a chat takes."""
    served = serve()
    answer = (await post(served, "/tokenize", {"model": "toy", "messages": MESSAGES})).json()
    await post(served, "/v1/chat/completions", {"model": "toy", "messages": MESSAGES})
    assert tuple(answer["tokens"]) == served.engine.submitted[0].prompt_token_ids
    shorter = (await post(served, "/tokenize", {"messages": MESSAGES, "add_generation_prompt": False})).json()
    assert shorter["count"] < answer["count"]


async def test_tokens_may_be_returned_as_the_vocabulary_writes_them():
    """return_token_strs adds the raw tokens."""
    answer = (await post(serve(), "/tokenize", {"prompt": " a", "return_token_strs": True})).json()
    assert answer["token_strs"] == ["<bos>", "Ġ", "a"]


async def test_detokenizing_gives_the_whole_text():
    """Token ids become text, special tokens included."""
    served = serve()
    ids = [BOS, *served.text.encode("hé", False), EOS]
    assert (await post(served, "/detokenize", {"tokens": ids})).json() == {"prompt": "<bos>hé<eos>"}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/tokenize", {}, 400),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, 400),
        ("/tokenize", {"prompt": 5}, 400),
        ("/tokenize", {"prompt": "a", "frobnicate": 1}, 400),
        ("/tokenize", {"prompt": "a", "model": "other"}, 404),
        ("/detokenize", {"tokens": ["a"]}, 400),
        ("/detokenize", {"tokens": [-1]}, 400),
        ("/detokenize", {}, 400),
    ],
)
async def test_wrong_bodies_are_refused_in_the_envelope(path, body, status):
    """As everywhere: 400 with the parameter, 404 for another model."""
    response = await post(serve(), path, body)
    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"


async def test_tokenizer_info_is_the_checkpoints_config():
    """tokenizer_config.json, where lm-eval looks for the EOS token and the chat template."""
    async with serve(template="x").client() as client:
        info = (await client.get("/tokenizer_info")).json()
    assert (info["eos_token"], info["bos_token"], info["chat_template"]) == ("<eos>", "<bos>", "x")
    assert info["tokenizer_class"] == "unknown"


async def test_the_version_is_told_before_there_is_a_model():
    """/version needs no model; the other three say when to come back."""
    async with serve(lifecycle=Lifecycle()).client() as client:
        assert (await client.get("/version")).json() == {"version": version("coldstream")}
        assert (await client.get("/tokenizer_info")).status_code == 503
        assert (await client.post("/tokenize", json={"prompt": "a"})).status_code == 503
        assert (await client.post("/detokenize", json={"tokens": [1]})).status_code == 503
