"""vLLM's parameters that change prompts, texts and answers; and the table that lists them all."""

import dataclasses
import json
from pathlib import Path

import pytest
from tokenizers import AddedToken

from app.api import document
from app.text.text_model import TextModel
from tests.unit.scripted_engine import BOS, EOS, byte_tokenizer, events, serve

BODY = {"model": "toy", "prompt": "hi"}
PATH = "/v1/completions"
CHAT_PATH = "/v1/chat/completions"
CHAT = {"model": "toy", "messages": [{"role": "user", "content": "hi"}]}
ROOT = Path(__file__).parents[2]


async def ask(served, path=PATH, **changes):
    """The answer to a request that is served."""
    async with served.client() as client:
        response = await client.post(path, json={**(BODY if path == PATH else CHAT), **changes})
    assert response.status_code == 200, response.text
    return response.json()


def test_the_table_of_parameters_is_up_to_date():
    """docs/api.md says what the wire types say; `python -m app.api.document docs/api.md` makes it so."""
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert document.with_table(text) == text


@pytest.mark.parametrize(("include", "text"), [(True, "one STOP"), (False, "one ")])
async def test_a_stop_string_is_shown_only_if_it_is_asked_for(include, text):
    """include_stop_str_in_output keeps the stop string, and nothing behind it."""
    served = serve(lambda _: [*served.text.encode("one STOP two", False), EOS])
    answer = await ask(served, stop="STOP", max_tokens=100, include_stop_str_in_output=include)
    assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == (text, "stop")


@pytest.mark.parametrize(("skip", "text"), [(None, "ab"), (True, "ab"), (False, "a<bos>b")])
async def test_special_tokens_have_text_only_if_they_are_not_skipped(skip, text):
    """skip_special_tokens hides special tokens; the one that ends the answer is hidden either way."""
    served = serve(lambda _: [*served.text.encode("a", False), BOS, *served.text.encode("b", False), EOS])
    assert (await ask(served, skip_special_tokens=skip))["choices"][0]["text"] == text


@pytest.mark.parametrize(
    ("path", "adds", "begins"), [(PATH, None, 1), (PATH, False, 0), (CHAT_PATH, None, 0), (CHAT_PATH, True, 1)]
)
async def test_special_tokens_are_added_where_nobody_wrote_them(path, adds, begins):
    """A completion's prompt gets a BOS and a chat's does not, unless add_special_tokens says otherwise."""
    served = serve()
    await ask(served, path, add_special_tokens=adds)
    assert served.engine.submitted[0].prompt_token_ids.count(BOS) == begins


@pytest.mark.parametrize(("limit", "kept"), [(2, 2), (190, 190), (500, 190), (-1, 190)])
async def test_a_prompt_is_cut_to_its_end(limit, kept):
    """truncate_prompt_tokens keeps the last tokens; -1 those that leave room for max_tokens."""
    served = serve()
    prompt = [each % 250 for each in range(190 if limit > 0 else 300)]
    await ask(served, prompt=prompt, max_tokens=10, truncate_prompt_tokens=limit)
    assert served.engine.submitted[0].prompt_token_ids == tuple(prompt[-kept:])


async def test_the_echo_of_a_cut_prompt_is_what_was_kept():
    """The text in front of the answer is that of the tokens that the model saw."""
    answer = await ask(serve("x"), prompt="hello", echo=True, truncate_prompt_tokens=3)
    assert answer["choices"][0]["text"] == "llox"


async def test_bad_words_are_banned_as_they_begin_and_behind_a_space():
    """Each word's own tokens; with a space where that makes another first token of as many, as vLLM has it."""
    served = serve()
    await ask(served, bad_words=["ab", " c"])
    encode = served.text.encode
    assert served.engine.submitted[0].sampling.bad_words == (encode("ab", False), encode("c", False))


async def test_the_request_id_is_in_the_answers_id():
    """A client's request_id names its answer."""
    assert (await ask(serve(), request_id="job-7"))["id"] == "cmpl-job-7"
    assert (await ask(serve(), CHAT_PATH, request_id="job-7"))["id"] == "chatcmpl-job-7"


async def test_token_ids_are_returned_hidden_ones_included():
    """return_token_ids gives the prompt's and the generated ids, the stop token's too."""
    served = serve("ab")
    answer = await ask(served, return_token_ids=True)
    chat = await ask(served, CHAT_PATH, return_token_ids=True)
    ids = [*served.text.encode("ab", False), EOS]
    assert answer["choices"][0]["token_ids"] == chat["choices"][0]["token_ids"] == ids
    first, second = (list(submit.prompt_token_ids) for submit in served.engine.submitted)
    assert answer["choices"][0]["prompt_token_ids"] == first
    assert chat["prompt_token_ids"] == second


@pytest.mark.parametrize("path", [PATH, CHAT_PATH])
async def test_a_streams_token_ids_are_all_there(path):
    """Tokens whose text is held back or hidden are told in the chunk of their step."""
    served = serve("é STOP")
    body = (BODY if path == PATH else CHAT) | {"stream": True, "return_token_ids": True, "stop": "STOP"}
    async with served.client() as client:
        chunks = [json.loads(event) for event in events((await client.post(path, json=body)).text)[:-1]]
    told = [token_id for chunk in chunks for token_id in chunk["choices"][0].get("token_ids", [])]
    assert told == list(served.text.encode("é STOP", False))
    prompts = [found for chunk in chunks for found in (chunk, chunk["choices"][0]) if "prompt_token_ids" in found]
    assert [found["prompt_token_ids"] for found in prompts] == [list(served.engine.submitted[0].prompt_token_ids)]


async def test_cached_tokens_are_counted_once_per_prompt():
    """The usage tells what each prompt's first choice found in the cache."""
    usage = (await ask(serve(), prompt=[[1] * 10, [2] * 20], n=2))["usage"]
    assert usage["prompt_tokens"] == 30
    assert usage["prompt_tokens_details"] == {"cached_tokens": 15}


async def test_the_fingerprint_is_stable():
    """Two answers of one server have the same fingerprint, streamed or whole."""
    served = serve()
    async with served.client() as client:
        streamed = json.loads(events((await client.post(PATH, json={**BODY, "stream": True})).text)[0])
    assert (await ask(served))["system_fingerprint"] == streamed["system_fingerprint"]
    assert streamed["system_fingerprint"].startswith("fp_")


@pytest.mark.parametrize(
    "names",
    [("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"), ("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>")],
)
async def test_a_suffix_is_what_the_answer_leads_to(names):
    """With a vocabulary that has tokens for it, the prompt is both texts and asks for what is between them."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    text = TextModel.from_files({"tokenizer.json": tokenizer.to_str().encode()})
    served = serve("x")
    served.service.model = dataclasses.replace(served.service.model, text=text, vocab_size=text.vocab_size)
    await ask(served, prompt="a", suffix="b")
    (a,), (b,) = text.encode("a", False), text.encode("b", False)
    assert served.engine.submitted[0].prompt_token_ids == (BOS, 258, a, 259, b, 260)


TOOL = {"type": "function", "function": {"name": "weather"}}
KNOWS_TOOLS = "{{ tools | length if tools else 0 }} tools{% for m in messages %} {{ m.content }}{% endfor %}"


@pytest.mark.parametrize("choice", [None, "auto", "none"])
async def test_tools_reach_a_template_that_knows_them(choice):
    """The template renders them, and the answer is text."""
    served = serve("<tool_call>", template=KNOWS_TOOLS)
    answer = await ask(served, CHAT_PATH, tools=[TOOL], tool_choice=choice)
    assert served.text.decode(served.engine.submitted[0].prompt_token_ids) == "1 tools hi"
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "<tool_call>"}


async def test_no_tools_are_no_tools():
    """An empty list is as good as none, for any template."""
    served = serve(template=KNOWS_TOOLS)
    await ask(served, CHAT_PATH, tools=[])
    assert served.text.decode(served.engine.submitted[0].prompt_token_ids) == "0 tools hi"


@pytest.mark.parametrize(("last", "end"), [("Once upon", "Once upon"), ("Once ", "Once "), (" Once", " Once")])
async def test_the_final_message_is_gone_on_with(last, end):
    """The prompt ends within the last message, and no head of another one follows."""
    served = serve()
    messages = [*CHAT["messages"], {"role": "assistant", "content": last}]
    await ask(served, CHAT_PATH, messages=messages, continue_final_message=True)
    assert served.text.decode(served.engine.submitted[0].prompt_token_ids) == f"<user>hi\n<assistant>{end}"


async def test_the_final_message_may_be_one_that_the_template_trims():
    """Space that the template drops from the message is not missed."""
    served = serve(template="{% for m in messages %}[{{ m.content | trim }}]{% endfor %}")
    await ask(served, CHAT_PATH, messages=[{"role": "user", "content": " a "}], continue_final_message=True)
    assert served.text.decode(served.engine.submitted[0].prompt_token_ids) == "[a"


async def test_a_final_message_that_the_template_hides_is_a_400():
    """What is not in the prompt cannot be gone on with."""
    async with serve(template="empty").client() as client:
        response = await client.post(CHAT_PATH, json={**CHAT, "continue_final_message": True})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "continue_final_message")


async def test_without_a_generation_prompt_the_messages_are_the_prompt():
    """add_generation_prompt false leaves out the head of the answer."""
    served = serve()
    await ask(served, CHAT_PATH, add_generation_prompt=False)
    assert served.text.decode(served.engine.submitted[0].prompt_token_ids) == "<user>hi\n"


async def test_template_variables_reach_the_template():
    """chat_template_kwargs are variables of the template, in its sandbox."""
    served = serve(template="{{ mood }}")
    await ask(served, CHAT_PATH, chat_template_kwargs={"mood": "good"})
    assert served.text.decode(served.engine.submitted[0].prompt_token_ids) == "good"


async def test_template_variables_stay_in_the_sandbox():
    """A template that reaches behind a variable's value is refused."""
    async with serve(template="{{ mood.__class__.__mro__ }}").client() as client:
        response = await client.post(CHAT_PATH, json={**CHAT, "chat_template_kwargs": {"mood": "good"}})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "messages")
