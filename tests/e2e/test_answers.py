"""The answers of a whole server: transformers' tokens, streams that interleave, sampling that repeats."""

from __future__ import annotations

import itertools
import threading
import time

import httpx
import openai
import pytest
import torch

from tests.coldstream import Server, serving

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village,",
    "def fibonacci(n):",
    "The three laws of thermodynamics are",
    "Water boils at",
    "My favourite recipe for bread starts with",
    "In 1969, the first human",
    "The quick brown fox",
    "A list of prime numbers: 2, 3, 5,",
    "Dear Sir or Madam,",
    "import numpy as np\n",
    "The mitochondria is",
    "Q: What is the largest planet?\nA:",
    "Shakespeare wrote",
    "To sort a list in Python, you can",
    "The main difference between cats and dogs is",
    "1 + 1 = 2, 2 + 2 = 4, 4 + 4 =",
    "The history of the Roman Empire",
    "Photosynthesis is the process by which",
    "Bonjour, je m'appelle",
]
MORE_PROMPTS = [
    "The speed of light is",
    "SELECT name FROM users WHERE",
    "Roses are red,",
    "The president of the United States",
    "Ingredients: flour, sugar,",
    "<html>\n<head>",
    "Once the battle had ended,",
    "The derivative of x squared is",
    "According to the report,",
    "Der schnelle braune Fuchs",
    "for i in range(10):\n    ",
    "Hello! How are you",
    "The moon orbits",
    "A haiku about autumn:",
    "In conclusion,",
    "The patient complained of",
    "class Node:\n    def __init__(self",
    "Terms and conditions:",
    "The best way to learn a language is",
    "12, 24, 36, 48,",
    "Dear diary, today",
    "The Pacific Ocean is",
    "Breaking news:",
    "Let x be a real number such that",
    "The recipe calls for two cups of",
    "Linux is an operating system that",
    "Tokyo, Paris, London,",
    "The patient zero of",
    "If it rains tomorrow,",
    "The end of the story is",
]


@pytest.fixture(scope="module")
def server(demo_model_dir, tmp_path_factory):
    """One server in float32, for the whole file."""
    log_path = tmp_path_factory.mktemp("server") / "log"
    with serving(str(demo_model_dir), "--dtype", "float32", log_path=log_path) as running:
        running.wait_ready()
        yield running


@pytest.fixture(scope="module")
def oracle(demo_model_dir):
    """What transformers computes with, in float32 and as many threads as the server; one for the whole file."""
    from transformers import AutoModelForCausalLM

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield AutoModelForCausalLM.from_pretrained(demo_model_dir, dtype=torch.float32)
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "prompts", [PROMPTS[:8], pytest.param(PROMPTS[8:] + MORE_PROMPTS, marks=pytest.mark.slow)], ids=["8", "42"]
)
def test_greedy_tokens_equal_transformers(server: Server, demo_model_dir, oracle, prompts):
    """Fifty prompts, eight and the others at once, give the text of transformers' `generate` in float32."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_model_dir, padding_side="left")
    answer = server.complete(prompts, max_tokens=24)  # type: ignore[arg-type]
    texts = {choice["index"]: choice["text"] for choice in answer["choices"]}
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    with torch.inference_mode():
        output = oracle.generate(**inputs, max_new_tokens=24, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    generated = output[:, inputs["input_ids"].shape[1] :]
    assert [texts[number] for number in range(len(prompts))] == [
        tokenizer.decode(token_ids, skip_special_tokens=True) for token_ids in generated
    ]


def log_probabilities(oracle, token_ids: list[int]):
    """The log_softmax (tokens, vocabulary) that transformers computes in float32."""
    with torch.inference_mode():
        return oracle(torch.tensor([token_ids])).logits[0].log_softmax(-1)


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
def test_logprobs_of_prompt_and_answer_equal_transformers(server: Server, oracle, streamed):
    """Echo with logprobs, read by the official client: every token's own and its alternatives are log_softmax's."""
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        wish = {"model": "m", "prompt": PROMPTS[19], "max_tokens": 6, "temperature": 0, "logprobs": 4, "echo": True}
        answer = client.completions.create(**wish, stream=streamed, extra_body={"return_token_ids": True})
        parts = [part.choices[0] for part in answer] if streamed else [answer.choices[0]]
    text = "".join(part.text for part in parts)
    lists = [part.logprobs for part in parts if part.logprobs]
    tokens, scores, tops, offsets = (
        [value for each in lists for value in getattr(each, name)]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    )
    generated = [token_id for part in parts for token_id in part.token_ids]
    token_ids = [*parts[0].prompt_token_ids, *generated]
    assert text.startswith(PROMPTS[19])
    assert "".join(tokens) == text
    assert offsets == [len("".join(tokens[:at])) for at in range(len(tokens))]
    assert len(tokens) == len(token_ids)
    assert (scores[0], tops[0]) == (None, None)
    expected = log_probabilities(oracle, token_ids)
    for at in range(1, len(token_ids)):
        row = expected[at - 1]
        assert scores[at] == pytest.approx(row[token_ids[at]].item(), abs=1e-3)
        assert tops[at][tokens[at]] == scores[at]
        assert sorted(tops[at].values(), reverse=True)[:4] == pytest.approx(row.topk(4).values.tolist(), abs=1e-3)
    assert all(score == max(top.values()) for score, top in zip(scores[-6:], tops[-6:], strict=True))


def test_a_prompt_is_scored_without_an_answer(server: Server, oracle):
    """Token id lists with echo and max_tokens 0, as evaluation harnesses score them, give the prompts' logprobs alone."""
    prompts = [[504, 3575, 282, 4649], [1, 2, 3]]
    answer = server.complete(prompts, max_tokens=0, echo=True, logprobs=1, prompt_logprobs=2)  # type: ignore[arg-type]
    assert answer["usage"]["completion_tokens"] == 0
    for choice, prompt in zip(answer["choices"], prompts, strict=True):
        expected = log_probabilities(oracle, prompt)
        own = [expected[at - 1, prompt[at]].item() for at in range(1, len(prompt))]
        assert choice["logprobs"]["token_logprobs"] == [None, *(pytest.approx(score, abs=1e-3) for score in own)]
        entries = zip(choice["prompt_logprobs"][1:], prompt[1:], strict=True)
        scored = [entry[str(token_id)]["logprob"] for entry, token_id in entries]
        assert scored == choice["logprobs"]["token_logprobs"][1:]


def test_a_chats_logprobs_equal_transformers(server: Server, oracle):
    """The official client reads a chat's logprobs, which are log_softmax's, with the bytes of the message."""
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(
            model="m",
            messages=[{"role": "user", "content": "Say hello in French."}],
            temperature=0,
            max_tokens=8,
            logprobs=True,
            top_logprobs=3,
            extra_body={"return_token_ids": True},
        )
    (choice,) = answer.choices
    content = choice.logprobs.content
    assert bytes(byte for entry in content for byte in entry.bytes).decode() == choice.message.content
    expected = log_probabilities(oracle, [*answer.prompt_token_ids, *choice.token_ids])
    for entry, token_id, row in zip(
        content, choice.token_ids, expected[len(answer.prompt_token_ids) - 1 :], strict=False
    ):
        assert entry.logprob == pytest.approx(row[token_id].item(), abs=1e-3)
        assert [each.logprob for each in entry.top_logprobs] == pytest.approx(row.topk(3).values.tolist(), abs=1e-3)
        assert entry.top_logprobs[0].token == entry.token or entry.token == ""


def test_a_bad_word_never_comes(server: Server):
    """The word that the model would say next is not said, neither with its space nor without."""
    said = server.complete(PROMPTS[0], max_tokens=8)["choices"][0]["text"]
    word = said.split()[0].strip(".,")
    instead = server.complete(PROMPTS[0], max_tokens=8, bad_words=[word])["choices"][0]["text"]
    assert word in said
    assert word not in instead


def test_a_prompt_that_was_computed_is_reported_as_cached(server: Server):
    """Of an equal prompt the second request computes only what does not fill a block."""
    prompt = "A sentence that is repeated to fill blocks. " * 8
    first, second = (server.complete(prompt, max_tokens=1)["usage"] for _ in range(2))
    assert first["prompt_tokens_details"]["cached_tokens"] == 0
    cached_tokens = second["prompt_tokens_details"]["cached_tokens"]
    assert second["prompt_tokens"] - 17 <= cached_tokens < second["prompt_tokens"]


def test_two_streams_interleave_token_by_token(server: Server):
    """Two streamed requests sent together advance together."""
    arrivals: list[str] = []

    def read(name: str) -> None:
        # Greedy, so that every token is text of its own: a drawn one may be half a character, which shows later.
        body = {"model": "m", "prompt": "Count: 1 2 3", "max_tokens": 60, "temperature": 0, "ignore_eos": True}
        body["stream"] = True
        with httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=60) as stream:
            arrivals.extend(name for line in stream.iter_lines() if line.startswith("data: {"))

    threads = [threading.Thread(target=read, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert min(arrivals.count("a"), arrivals.count("b")) >= 60
    # From where both run until one ends, neither waits for more than a few of the other's tokens.
    both = "".join(arrivals)
    start = max(both.index("a"), both.index("b"))
    end = min(both.rindex("a"), both.rindex("b"))
    overlap = both[start:end]
    assert len(overlap) > 60
    switches = sum(one != two for one, two in itertools.pairwise(overlap))
    assert switches > len(overlap) / 3


def test_a_seed_repeats_alone_and_in_company(server: Server):
    """The same seed draws the same text, whatever else is in the batch."""
    wish = {"max_tokens": 16, "temperature": 1.0, "top_p": 0.95, "top_k": 50, "seed": 7}
    alone = server.complete(PROMPTS[0], **wish)["choices"][0]["text"]
    answer = server.complete([PROMPTS[0], *PROMPTS[1:6]], **wish)
    together = next(choice["text"] for choice in answer["choices"] if choice["index"] == 0)
    other = server.complete(PROMPTS[0], **{**wish, "seed": 8})["choices"][0]["text"]
    assert alone == together
    assert alone != other


def test_the_official_client_chats(server: Server):
    """The openai package's chat, streamed, as a user would write it."""
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    with client:
        chunks = client.chat.completions.create(
            model="m",
            messages=[{"role": "user", "content": "What is the capital of France?"}],
            temperature=0,
            max_tokens=24,
            stream=True,
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert "Paris" in text


def test_a_stop_string_ends_the_text_before_it(server: Server):
    """`stop` is cut off, also where it spans tokens."""
    whole = server.complete(PROMPTS[6], max_tokens=24)["choices"][0]["text"]
    stop = whole[10:16]
    cut = server.complete(PROMPTS[6], max_tokens=24, stop=stop)["choices"][0]
    assert cut["text"] == whole[: whole.index(stop)]
    assert cut["finish_reason"] == "stop"


def test_a_client_that_leaves_stops_the_generation(server: Server):
    """After the disconnect the engine is idle again: a whole-context generation would take minutes."""
    body = {"model": "m", "prompt": "x", "max_tokens": 2000, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=60) as stream:
        next(stream.iter_lines())
    engine = server.child("app.engine")
    time.sleep(1.0)
    before_s = sum(engine.cpu_times()[:2])
    time.sleep(1.0)
    assert sum(engine.cpu_times()[:2]) - before_s < 0.2
