"""POST /v1/completions, plain and streamed, against a scripted engine."""

import asyncio
import json

import pytest

from app.api.models import system_fingerprint
from app.messages import SamplingParams
from tests.unit.scripted_engine import BOS, EOS, HANG, MAX_MODEL_LEN, events, serve, usage

BODY = {"model": "toy", "prompt": "hi"}


async def test_an_answer_has_openais_shape():
    """A plain completion is one text_completion object with text, finish reason and usage."""
    async with serve("hello").client() as client:
        response = await client.post("/v1/completions", json=BODY)
    answer = response.json()
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert answer.pop("id").startswith("cmpl-")
    assert answer.pop("created") > 1_700_000_000
    assert answer == {
        "object": "text_completion",
        "model": "toy",
        "choices": [{"index": 0, "text": "hello", "logprobs": None, "finish_reason": "stop"}],
        "system_fingerprint": system_fingerprint("toy", "float32"),
        "usage": usage(3, 6, 1),
    }


async def test_a_prompt_is_encoded_with_its_special_tokens():
    """Text gets the tokenizer's BOS; token ids are taken as they are."""
    served = serve()
    async with served.client() as client:
        await client.post("/v1/completions", json=BODY)
        await client.post("/v1/completions", json={**BODY, "prompt": [5, 6, 7]})
    text_prompt, id_prompt = (submit.prompt_token_ids for submit in served.engine.submitted)
    assert text_prompt == (BOS, *served.text.encode("hi", False))
    assert id_prompt == (5, 6, 7)


@pytest.mark.parametrize(
    ("prompt", "count"),
    [("a", 1), (["a", "b"], 2), ([1, 2], 1), ([[1, 2], [3]], 2)],
    ids=["text", "texts", "token ids", "token id lists"],
)
async def test_every_form_of_prompt_is_taken(prompt, count):
    """A string, strings, token ids and lists of token ids all make the right number of choices."""
    async with serve("x").client() as client:
        response = await client.post("/v1/completions", json={**BODY, "prompt": prompt})
    assert [choice["index"] for choice in response.json()["choices"]] == list(range(count))


async def test_choices_are_prompt_major_and_seeds_differ_per_choice():
    """Two prompts with n=2 make four choices, the first prompt's first; choice i is seeded with seed + i."""
    served = serve(lambda submit: [submit.prompt_token_ids[0], submit.sampling.seed])
    prompts = [[ord("A") - 33], [ord("B") - 33]]
    async with served.client() as client:
        response = await client.post("/v1/completions", json={**BODY, "prompt": prompts, "n": 2, "seed": 40})
    decode = served.text.decode
    assert [choice["text"] for choice in response.json()["choices"]] == [
        decode([prompts[0][0], 40]),
        decode([prompts[0][0], 41]),
        decode([prompts[1][0], 40]),
        decode([prompts[1][0], 41]),
    ]
    assert response.json()["usage"] == usage(2, 8, 0)


async def test_sampling_parameters_reach_the_engine():
    """Every honoured parameter arrives as sent, and the model's own stop tokens are added."""
    served = serve()
    same = {
        "max_tokens": 3,
        "temperature": 0.0,
        "top_p": 0.5,
        "top_k": 7,
        "min_p": 0.1,
        "presence_penalty": -0.5,
        "frequency_penalty": 2.0,
        "repetition_penalty": 1.1,
        "seed": 1,
        "min_tokens": 2,
    }
    sent = same | {"stop_token_ids": [9], "logit_bias": {"5": -100, "7": 1.5}, "allowed_token_ids": [5, 7]}
    async with served.client() as client:
        response = await client.post("/v1/completions", json={**BODY, **sent})
    assert response.status_code == 200
    assert served.engine.submitted[0].sampling == SamplingParams(
        **same, stop_token_ids=(EOS, 9), logit_bias=((5, -100.0), (7, 1.5)), allowed_token_ids=(5, 7)
    )


async def test_min_tokens_is_clamped_with_max_tokens():
    """Where the context has less room than was asked for, both shrink, and the request is served."""
    served = serve()
    async with served.client() as client:
        sent = {**BODY, "prompt": [1] * 190, "max_tokens": 100, "min_tokens": 50}
        assert (await client.post("/v1/completions", json=sent)).status_code == 200
    assert (served.engine.submitted[0].sampling.min_tokens, served.engine.submitted[0].sampling.max_tokens) == (10, 10)


async def test_null_means_default():
    """A parameter that is null is as good as absent."""
    served = serve()
    nulls = dict.fromkeys(
        ["max_tokens", "temperature", "top_p", "n", "stream", "stop", "seed", "user", "top_k", "logprobs", "best_of"]
    )
    async with served.client() as client:
        response = await client.post("/v1/completions", json={**BODY, **nulls})
    assert response.status_code == 200
    assert served.engine.submitted[0].sampling == SamplingParams(max_tokens=16, stop_token_ids=(EOS,))


async def test_ignore_eos_drops_the_models_stop_tokens():
    """With ignore_eos the engine gets no stop token and generates on behind EOS."""
    served = serve(lambda _: [EOS, *served.text.encode("on", False)])
    async with served.client() as client:
        response = await client.post("/v1/completions", json={**BODY, "ignore_eos": True, "top_k": -1})
    assert served.engine.submitted[0].sampling.stop_token_ids == ()
    assert response.json()["choices"][0]["text"] == "on"
    assert response.json()["choices"][0]["finish_reason"] == "length"


async def test_max_tokens_is_clamped_to_the_context():
    """More tokens than fit are cut to what fits behind the prompt."""
    served = serve()
    async with served.client() as client:
        await client.post("/v1/completions", json={**BODY, "prompt": [1] * 190, "max_tokens": 1000})
    assert served.engine.submitted[0].sampling.max_tokens == 10


async def test_a_prompt_that_fills_the_context_is_refused_with_both_numbers():
    """A prompt without room for one token is a 400 that names its length and the limit."""
    served = serve()
    async with served.client() as client:
        response = await client.post("/v1/completions", json={**BODY, "prompt": [1] * MAX_MODEL_LEN})
    assert response.status_code == 400
    assert response.json()["error"]["message"].count(f"{MAX_MODEL_LEN} tokens") == 2
    assert served.engine.submitted == []


async def test_a_stop_string_across_tokens_ends_the_text_before_it():
    """The text stops before the stop string, the sequence is aborted, and the reason is "stop"."""
    served = serve(lambda _: [*served.text.encode("one STOP two", False), HANG])
    async with served.client() as client:
        response = await client.post("/v1/completions", json={**BODY, "stop": "STOP", "max_tokens": 100})
    choice = response.json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("one ", "stop")
    assert served.engine.aborted == [served.engine.submitted[0].request_id]


async def test_a_stream_is_framed_chunks_and_done():
    """A stream is `data:` frames of one id, text pieces that make up the text, and a final [DONE]."""
    async with serve("héllo").client() as client:
        response = await client.post("/v1/completions", json={**BODY, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events(response.text)
    parsed = [json.loads(chunk) for chunk in chunks]
    assert done == "[DONE]"
    assert len({chunk["id"] for chunk in parsed}) == 1
    assert [chunk["choices"][0]["text"] for chunk in parsed] == ["h", "é", "l", "l", "o", ""]
    assert [chunk["choices"][0]["finish_reason"] for chunk in parsed] == [None] * 5 + ["stop"]
    assert all("usage" not in chunk and chunk["object"] == "text_completion" for chunk in parsed)


async def test_the_first_chunk_comes_with_the_first_token():
    """The first token is told at once, even while it is half a character and has no text."""
    async with serve("é").client() as client:
        response = await client.post("/v1/completions", json={**BODY, "stream": True})
    texts = [json.loads(chunk)["choices"][0]["text"] for chunk in events(response.text)[:-1]]
    assert texts == ["", "é", ""]


async def test_usage_is_a_last_chunk_without_choices():
    """With include_usage, usage is null in every chunk but an additional last one, which has no choices."""
    body = {**BODY, "stream": True, "stream_options": {"include_usage": True}}
    async with serve("ab").client() as client:
        response = await client.post("/v1/completions", json=body)
    *chunks, last = (json.loads(chunk) for chunk in events(response.text)[:-1])
    assert [chunk["usage"] for chunk in chunks] == [None] * 3
    assert last["choices"] == []
    assert last["usage"] == usage(3, 3, 1)


async def test_continuous_usage_counts_up():
    """With continuous_usage_stats every chunk carries the usage so far."""
    body = {**BODY, "stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    async with serve("ab").client() as client:
        response = await client.post("/v1/completions", json=body)
    counts = [json.loads(chunk)["usage"]["completion_tokens"] for chunk in events(response.text)[:-1]]
    assert counts == [1, 2, 3, 3]


async def test_the_choices_of_a_stream_are_merged_by_index():
    """Several sequences run at once; each choice's pieces, picked by index, are its own text."""
    served = serve(lambda submit: [*served.text.encode(f"text {submit.sampling.seed}", False), EOS])
    async with served.client() as client:
        response = await client.post("/v1/completions", json={**BODY, "n": 3, "seed": 1, "stream": True})
    texts = ["", "", ""]
    order = []
    for chunk in events(response.text)[:-1]:
        choice = json.loads(chunk)["choices"][0]
        texts[choice["index"]] += choice["text"]
        order.append(choice["index"])
    assert texts == ["text 1", "text 2", "text 3"]
    assert order != sorted(order)


async def test_a_failure_after_the_headers_ends_the_stream_with_an_error():
    """A sequence that fails midway ends the stream with an error event and no [DONE]."""
    served = serve(lambda _: [*served.text.encode("ab", False), "the engine died"])
    async with served.client() as client:
        response = await client.post("/v1/completions", json={**BODY, "stream": True})
    *chunks, last = events(response.text)
    assert [json.loads(chunk)["choices"][0]["text"] for chunk in chunks] == ["a", "b"]
    assert json.loads(last)["error"]["message"] == "the engine died"
    assert json.loads(last)["error"]["code"] == "engine_failed"


async def test_a_failure_before_the_first_token_keeps_its_status():
    """A sequence that fails at once is a 500 even when a stream was asked for."""
    async with serve(lambda _: ["no memory"]).client() as client:
        response = await client.post("/v1/completions", json={**BODY, "stream": True})
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "no memory"


async def test_one_failed_sequence_aborts_the_others():
    """If one choice of a request fails, the request fails and the other choices are aborted."""
    served = serve(lambda submit: ["broken"] if submit.sampling.seed == 2 else [1, HANG])
    async with served.client() as client:
        response = await client.post("/v1/completions", json={**BODY, "n": 3, "seed": 0})
    assert response.status_code == 500
    assert sorted(served.engine.aborted) == [submit.request_id for submit in served.engine.submitted[:2]]


async def test_too_many_sequences_are_a_429():
    """A request that does not fit beside those that run is refused with Retry-After, and submits nothing."""
    served = serve(lambda _: [HANG], max_sequences=3)
    async with served.client() as client:
        running = asyncio.create_task(client.post("/v1/completions", json={**BODY, "n": 2}))
        async with asyncio.timeout(10):
            while len(served.engine.submitted) < 2:  # noqa: ASYNC110 - the scripted engine has no event for this
                await asyncio.sleep(0.01)
        response = await client.post("/v1/completions", json={**BODY, "n": 2})
        running.cancel()
    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"
    assert len(served.engine.submitted) == 2


async def test_the_first_token_of_the_process_is_a_milestone():
    """The first delivered token marks the ledger, once."""
    served = serve()
    async with served.client() as client:
        assert served.service.ledger.as_dict()["milestones"] == {}
        await client.post("/v1/completions", json=BODY)
        first = served.service.ledger.as_dict()["milestones"]
        await client.post("/v1/completions", json=BODY)
    assert list(first) == ["first_answer_time"]
    assert served.service.ledger.as_dict()["milestones"] == first
