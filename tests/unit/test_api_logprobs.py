"""Log probabilities, echo and prompt scoring, against an engine that scores by a rule."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.scripted_engine import BOS, EOS, HANG, MAX_MODEL_LEN, events, serve

BODY = {"model": "toy", "prompt": "hi"}
CHAT = {"model": "toy", "messages": [{"role": "user", "content": "hi"}]}


async def complete(served, **changes):
    """The choices of a whole answer."""
    async with served.client() as client:
        response = await client.post("/v1/completions", json={**BODY, **changes})
    assert response.status_code == 200, response.text
    return response.json()["choices"]


async def stream(served, path="/v1/completions", **body):
    """The choices of a stream's chunks."""
    async with served.client() as client:
        response = await client.post(path, json={**body, "stream": True})
    return [json.loads(chunk)["choices"][0] for chunk in events(response.text)[:-1]]


async def test_logprobs_are_four_lists_side_by_side():
    """Tokens, their logprobs, the alternatives by text and the offsets in the text; the end is a token without text."""
    (choice,) = await complete(serve("ab"), logprobs=2)
    assert choice["logprobs"] == {
        "tokens": ["a", "b", ""],
        "token_logprobs": [-0.25, -0.25, -0.25],
        "top_logprobs": [{"a": -0.25, "b": -1.25}, {"b": -0.25, "c": -1.25}, {"": -0.25, "!": -1.25}],
        "text_offset": [0, 1, 2],
    }


async def test_an_answer_without_text_has_empty_lists():
    """Where a stop string cuts everything, there is nothing in the lists, but there are lists."""
    (choice,) = await complete(serve("ab"), logprobs=1, stop="a")
    assert choice["text"] == ""
    assert choice["logprobs"] == {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


async def test_logprobs_0_gives_the_tokens_own():
    """With 0 every entry holds the chosen token alone, and the engine names no alternatives."""
    served = serve("ab")
    (choice,) = await complete(served, logprobs=0)
    assert choice["logprobs"]["top_logprobs"] == [{"a": -0.25}, {"b": -0.25}, {"": -0.25}]
    assert served.engine.submitted[0].sampling.logprobs == 0


async def test_without_logprobs_nothing_is_scored():
    """A request that does not ask gets null, and the engine computes none."""
    served = serve("ab")
    (choice,) = await complete(served)
    assert choice["logprobs"] is None
    assert served.engine.submitted[0].sampling.logprobs is None
    assert served.engine.submitted[0].sampling.prompt_logprobs is None


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompt=st.text(alphabet="ab\u00e9\U0001f642", min_size=1, max_size=8),
    text=st.text(alphabet="ab.\u00e9\U0001f642", max_size=12),
    stop=st.lists(st.text(alphabet="ab.\u00e9", min_size=1, max_size=3), max_size=2),
    echo=st.booleans(),
    include=st.booleans(),
)
async def test_tokens_and_offsets_are_the_text_streamed_or_whole(prompt, text, stop, echo, include):
    """Whatever stop strings cut or hold back, tokens concatenate to the text, offsets are theirs, chunks are aligned."""
    body = {"prompt": prompt, "logprobs": 1, "stop": stop, "echo": echo, "include_stop_str_in_output": include}
    served = serve(lambda _: [*served.text.encode(text, False), EOS])
    (whole,) = await complete(served, **body, max_tokens=100)
    chunks = await stream(served, **BODY | body, max_tokens=100)
    logprobs = whole["logprobs"]
    assert "".join(logprobs["tokens"]) == whole["text"]
    assert whole["text"].startswith(prompt if echo else "")
    assert logprobs["text_offset"] == [len("".join(logprobs["tokens"][:at])) for at in range(len(logprobs["tokens"]))]
    assert len({len(values) for values in logprobs.values()}) == 1
    assert "".join(chunk["text"] for chunk in chunks) == whole["text"]
    assert all("".join((chunk["logprobs"] or {"tokens": []})["tokens"]) == chunk["text"] for chunk in chunks)
    for name, values in logprobs.items():
        assert [value for chunk in chunks if chunk["logprobs"] for value in chunk["logprobs"][name]] == values


async def test_a_token_that_a_stop_string_cuts_is_listed_up_to_the_cut():
    """The tokens of the stop string are neither in the text nor in the lists."""
    served = serve(lambda _: [*served.text.encode("one STOP two", False), HANG])
    (choice,) = await complete(served, stop="STOP", logprobs=1, max_tokens=100)
    assert choice["logprobs"]["tokens"] == list("one ")
    assert choice["text"] == "one "


@pytest.mark.parametrize(
    ("prompt", "text"),
    [("h\u00e9", "h\u00e9"), ([1, 2], None), (["a", "bc"], "a"), ([[65, 66], [67]], None)],
    ids=["text", "ids", "texts", "id lists"],
)
async def test_echo_puts_the_prompt_before_the_answer(prompt, text):
    """Every form of prompt is echoed: a text as it was sent, token ids as they decode."""
    served = serve("x")
    first = await complete(served, prompt=prompt, echo=True)
    ids = served.engine.submitted[0].prompt_token_ids
    assert first[0]["text"] == (text or served.text.decode(ids)) + "x"


async def test_an_echoed_prompt_is_as_it_was_sent():
    """A special token that the text spells out is echoed although it is one that is skipped."""
    (choice,) = await complete(serve("x"), prompt="<eos>a", echo=True)
    assert choice["text"] == "<eos>ax"


async def test_echoed_choices_are_prompt_major():
    """With n=2 each prompt's choices follow each other, each with its own prompt in front."""
    choices = await complete(serve("x"), prompt=["a", "b"], n=2, echo=True)
    assert [choice["text"] for choice in choices] == ["ax", "ax", "bx", "bx"]


async def test_echo_with_logprobs_scores_the_prompt():
    """The prompt's tokens are listed before the answer's; nothing predicts the first, the BOS that has no text."""
    served = serve("x")
    (choice,) = await complete(served, echo=True, logprobs=1)
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["", "h", "i", "x", ""]
    assert logprobs["text_offset"] == [0, 0, 1, 2, 3]
    assert logprobs["token_logprobs"] == [None, -0.25, -0.25, -0.25, -0.25]
    assert logprobs["top_logprobs"] == [None, {"h": -0.25}, {"i": -0.25}, {"x": -0.25}, {"": -0.25}]
    assert served.engine.submitted[0].sampling.prompt_logprobs == 1


@pytest.mark.parametrize("streamed", [True, False])
async def test_max_tokens_0_scores_the_prompt_only(streamed):
    """With echo and no token to generate the answer is the prompt, its end "length", and no token is counted."""
    served = serve("x")
    wish = {"echo": True, "max_tokens": 0, "logprobs": 0}
    (choice,) = await stream(served, **BODY | wish) if streamed else await complete(served, **wish)
    assert (choice["text"], choice["finish_reason"]) == ("hi", "length")
    assert choice["logprobs"]["token_logprobs"] == [None, -0.25, -0.25]
    async with served.client() as client:
        usage = (await client.post("/v1/completions", json={**BODY, **wish})).json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (3, 0, 3)


async def test_a_streams_first_chunk_has_the_echo():
    """The prompt comes with the first token, offsets go on behind it."""
    first, *rest = await stream(serve("xy"), **BODY, echo=True, logprobs=0)
    assert first["text"] == "hix"
    assert [offset for chunk in rest for offset in chunk["logprobs"]["text_offset"]] == [3, 4]


async def test_lm_evals_loglikelihood_is_read_off_as_it_reads_it():
    """Context and continuation as token ids, one token generated: the slice between them, each a dict whose max is its own."""
    context, continuation = [65, 66, 67], [68, 69]
    (choice,) = await complete(
        serve("x"), prompt=[[*context, *continuation]], echo=True, max_tokens=1, logprobs=1, temperature=0, seed=1
    )
    scores = choice["logprobs"]["token_logprobs"][len(context) : -1]
    tops = choice["logprobs"]["top_logprobs"][len(context) : -1]
    assert len(scores) == len(continuation)
    assert all(score == max(top.values()) for score, top in zip(scores, tops, strict=True))


async def test_prompt_logprobs_are_vllms_list_of_dicts():
    """Null for the first token, then by token id logprob, rank and text of the token and its alternatives."""
    served = serve("x")
    (choice,) = await complete(served, prompt_logprobs=2)
    (h, i) = served.text.encode("hi", False)
    assert choice["prompt_logprobs"] == [
        None,
        {
            str(h): {"logprob": -0.25, "rank": 1, "decoded_token": "h"},
            str(h + 1): {"logprob": -1.25, "rank": 2, "decoded_token": "i"},
        },
        {
            str(i): {"logprob": -0.25, "rank": 1, "decoded_token": "i"},
            str(i + 1): {"logprob": -1.25, "rank": 2, "decoded_token": "j"},
        },
    ]
    assert choice["logprobs"] is None


async def test_a_chats_logprobs_are_openais_list():
    """Each token has its text, logprob and bytes, and as many alternatives as were asked for."""
    async with serve("a\u00e9").client() as client:
        response = await client.post("/v1/chat/completions", json={**CHAT, "logprobs": True, "top_logprobs": 1})
    logprobs = response.json()["choices"][0]["logprobs"]
    assert logprobs["refusal"] is None
    assert [(each["token"], each["bytes"]) for each in logprobs["content"]] == [
        ("a", [97]), ("", [0xC3]), ("\u00e9", [0xA9]), ("", [])
    ]  # fmt: skip
    assert logprobs["content"][0]["top_logprobs"] == [{"token": "a", "logprob": -0.25, "bytes": [97]}]
    assert logprobs["content"][-1]["top_logprobs"][0]["token"] == "<eos>"


async def test_a_streamed_chats_logprobs_come_with_their_text():
    """Every chunk with text has its tokens; all of them together are the whole answer's."""
    choices = await stream(serve("h\u00e9y"), "/v1/chat/completions", **CHAT, logprobs=True)
    entries = [entry for choice in choices if choice["logprobs"] for entry in choice["logprobs"]["content"]]
    assert bytes(byte for entry in entries for byte in entry["bytes"]).decode() == "h\u00e9y"
    for choice in choices:
        tokens = choice["logprobs"]["content"] if choice["logprobs"] else []
        assert "".join(entry["token"] for entry in tokens) == choice["delta"].get("content", "")


async def test_a_chats_prompt_logprobs_are_beside_its_choices():
    """A chat has one prompt, so its logprobs belong to the whole answer."""
    served = serve("a")
    async with served.client() as client:
        answer = (await client.post("/v1/chat/completions", json={**CHAT, "prompt_logprobs": 0, "n": 2})).json()
    assert len(answer["prompt_logprobs"]) == len(served.engine.submitted[0].prompt_token_ids)
    assert answer["prompt_logprobs"][0] is None


async def test_a_token_that_cannot_come_is_minus_9999(monkeypatch):
    """JSON has no minus infinity."""
    from app.messages import TokenLogprobs
    from tests.unit import scripted_engine

    impossible = TokenLogprobs(float("-inf"), 3, (BOS,), (float("-inf"),))
    monkeypatch.setattr(scripted_engine, "scored", lambda *_: impossible)
    (choice,) = await complete(serve("a"), logprobs=1)
    assert choice["logprobs"]["token_logprobs"][0] == -9999.0
    assert choice["logprobs"]["top_logprobs"][0] == {"a": -9999.0, "<bos>": -9999.0}


async def test_a_prompt_may_fill_the_context_where_nothing_follows():
    """Scoring alone takes prompts of the model's whole length; one token more is refused, and so is an answer."""
    served = serve()
    prompt = [each % 250 for each in range(MAX_MODEL_LEN)]
    (choice,) = await complete(served, prompt=prompt, echo=True, max_tokens=0, logprobs=1)
    assert len(choice["logprobs"]["token_logprobs"]) == MAX_MODEL_LEN
    assert served.engine.submitted[0].sampling.max_tokens == 0
    async with served.client() as client:
        for longer in ({"max_tokens": 1}, {"prompt": [*prompt, 1], "max_tokens": 0}):
            response = await client.post("/v1/completions", json=BODY | {"prompt": prompt, "echo": True} | longer)
            assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt")
