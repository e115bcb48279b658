"""Every parameter that the official client types, plain and streamed, synchronous and not: honoured, or a 400 by name."""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

from tests.coldstream import Server
from tests.conformance.conftest import API_KEY
from tests.conformance.openai_answers import WAYS, Answer, Clients

PROMPT = "Hello"
COUNT = 16
EXTRAS = {"return_token_ids": True, "ignore_eos": True}
# So few that a text of COUNT tokens says some of them twice.
FEW = {"extra_body": EXTRAS | {"allowed_token_ids": list(range(300, 300 + COUNT))}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}

# What is sent, and what has to be true of the answer, given a function that asks for something else.
Asker = Callable[..., Answer]
Check = Callable[[Answer, Asker], bool]


def same(answer: Answer, ask: Asker) -> bool:
    """The parameter says who asks, or what is so anyway."""
    return answer.text == ask().text


def greedy(answer: Answer, ask: Asker) -> bool:
    return answer.text == ask(temperature=0).text


def distinct(answer: Answer, ask: Asker) -> bool:
    """The penalty is more than any two logits of the model differ by: no token comes again."""
    return len(set(answer.token_ids[0])) == len(answer.token_ids[0]) == COUNT > len(set(ask(**FEW).token_ids[0]))


def choices(count: int) -> Check:
    return lambda answer, _: sorted(answer.texts) == list(range(count))


def tokens(count: int) -> Check:
    return lambda answer, _: len(answer.token_ids[0]) == count and answer.finish_reasons[0] == "length"


def repeatable(answer: Answer, ask: Asker) -> bool:
    return answer.text == ask(seed=7, temperature=1).text != ask(seed=8, temperature=1).text


def four_texts(answer: Answer, _: Asker) -> bool:
    return len(set(answer.texts.values())) == 4


def scored(answer: Answer, _: Asker) -> bool:
    tops = [top for each in answer.logprobs for top in each.top_logprobs]
    return len(tops) == COUNT and all(len(top) <= 4 for top in tops) and max(map(len, tops)) >= 3


def chat_scored(answer: Answer, _: Asker) -> bool:
    entries = [entry for each in answer.logprobs for entry in each.content]
    return len(entries) == COUNT and all(len(entry.top_logprobs) in (0, 3) for entry in entries)


def stopped(answer: Answer, ask: Asker) -> bool:
    whole = ask().text
    return answer.text == whole[: whole.index(whole[6:10])] and answer.finish_reasons[0] == "stop"


Parameters = dict[str, Any] | Callable[[Asker], dict[str, Any]]
ANYWHERE: dict[str, tuple[Parameters, Check]] = {
    "frequency_penalty": ({"frequency_penalty": 2, **FEW}, distinct),
    "presence_penalty": ({"presence_penalty": 2, **FEW}, distinct),
    "logit_bias": ({"logit_bias": {"500": 100}}, lambda answer, _: answer.token_ids[0] == [500] * COUNT),
    "max_tokens": ({"max_tokens": 3}, tokens(3)),
    "model": ({"model": "alias"}, same),
    "n": ({"n": 3}, choices(3)),
    "seed": ({"seed": 7, "temperature": 1}, repeatable),
    "stop": (lambda ask: {"stop": [ask().text[6:10], "never"]}, stopped),
    "temperature": ({"temperature": 2, "n": 4}, four_texts),
    "top_p": ({"top_p": 1e-6, "temperature": 1}, greedy),
    "user": ({"user": "ann"}, same),
}
COMPLETIONS = ANYWHERE | {
    "best_of": ({"best_of": 2, "n": 2}, choices(2)),
    "echo": ({"echo": True}, lambda answer, ask: answer.text == PROMPT + ask().text),
    "logprobs": ({"logprobs": 3}, scored),
    "prompt": ({"prompt": [PROMPT, "Bye"]}, lambda answer, ask: answer.texts[1] == ask(prompt="Bye").text),
}
CHATS = ANYWHERE | {
    "logprobs": ({"logprobs": True}, chat_scored),
    "top_logprobs": ({"logprobs": True, "top_logprobs": 3}, chat_scored),
    "max_completion_tokens": ({"max_completion_tokens": 3, "max_tokens": openai.omit}, tokens(3)),
    "messages": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": PROMPT}]}]},
        same,
    ),
    "parallel_tool_calls": ({"parallel_tool_calls": False}, same),
    "prompt_cache_key": ({"prompt_cache_key": "k"}, same),
    "safety_identifier": ({"safety_identifier": "ann"}, same),
    "tools": ({"tools": [TOOL]}, lambda answer, ask: answer.text != ask().text),
}
REFUSED_COMPLETIONS: dict[str, Any] = {"suffix": "end"}
REFUSED_CHATS: dict[str, Any] = {
    "audio": {"voice": "alloy", "format": "wav"},
    "function_call": {"name": "weather"},
    "functions": [TOOL["function"]],
    "metadata": {"key": "value"},
    "modalities": ["text", "audio"],
    "moderation": {"model": "some"},
    "prediction": {"type": "content", "content": "x"},
    "prompt_cache_options": {"mode": "explicit"},
    "prompt_cache_retention": "24h",
    "reasoning_effort": "low",
    "response_format": {"type": "json_object"},
    "service_tier": "priority",
    "store": True,
    "tool_choice": "required",
    "verbosity": "low",
    "web_search_options": {},
}
ENDPOINTS = {
    "completions": (COMPLETIONS, REFUSED_COMPLETIONS, completion_create_params.CompletionCreateParamsBase),
    "chats": (CHATS, REFUSED_CHATS, chat_create_params.CompletionCreateParamsBase),
}
HONOURED = [(endpoint, name) for endpoint, (known, _, _) in ENDPOINTS.items() for name in known]
REFUSED = [(endpoint, name) for endpoint, (_, known, _) in ENDPOINTS.items() for name in known]


def usual(endpoint: str) -> dict[str, Any]:
    """A request that says little; with it the tiny model writes so many tokens."""
    prompt = {"prompt": PROMPT} if endpoint == "completions" else {"messages": [{"role": "user", "content": PROMPT}]}
    return {"model": "m", "max_tokens": COUNT, "temperature": 0, "extra_body": EXTRAS} | prompt


@pytest.fixture(scope="module")
def asker(server: Server) -> Iterator[Callable[..., Answer]]:
    """Asks the server; what was asked plainly before need not be answered again."""
    answers: dict[str, Answer] = {}

    with Clients(server.url, API_KEY) as clients:

        def send(endpoint: str, way: str, changes: dict[str, Any]) -> Answer:
            return clients.ask(way, chat=endpoint == "chats", **usual(endpoint) | changes)

        def request(endpoint: str, way: str | None = None, **changes: Any) -> Answer:
            if way is not None:
                return send(endpoint, way, changes)
            key = f"{endpoint} {sorted(changes.items())}"
            if key not in answers:
                answers[key] = send(endpoint, "sync", changes)
            return answers[key]

        yield request


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_every_typed_parameter_is_in_these_tests(endpoint):
    """What a new version of the client types has to be honoured or refused knowingly."""
    honoured, refused, typed = ENDPOINTS[endpoint]
    assert not honoured.keys() & refused.keys()
    assert {*honoured, *refused, "stream_options"} == set(typing.get_type_hints(typed))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("endpoint", "name"), HONOURED)
def test_a_parameter_is_honoured(asker, endpoint, name, way):
    """The answer is what the parameter asks for, whichever way it comes."""
    parameters, check = ENDPOINTS[endpoint][0][name]
    plain = functools.partial(asker, endpoint)
    sent = parameters(plain) if callable(parameters) else parameters
    assert check(asker(endpoint, way, **sent), plain)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("endpoint", "name"), REFUSED)
def test_what_is_not_honoured_is_refused_by_name(asker, endpoint, name, way):
    """The client raises BadRequestError, which names the parameter."""
    with pytest.raises(openai.BadRequestError, match=name) as caught:
        asker(endpoint, way, **{name: ENDPOINTS[endpoint][1][name]})
    assert (caught.value.param, caught.value.type, caught.value.status_code) == (name, "invalid_request_error", 400)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_stream_options_belong_to_streams(asker, endpoint, way):
    """The usage comes in a last chunk of its own; without a stream they are a 400."""
    options = {"stream_options": {"include_usage": True}}
    if "stream" not in way:
        with pytest.raises(openai.BadRequestError, match="stream_options"):
            asker(endpoint, way, **options)
        return
    answer = asker(endpoint, way, **options)
    assert answer.parts[-1].choices == []
    assert answer.parts[-1].usage.completion_tokens == COUNT
    assert all(part.usage is None for part in answer.parts[:-1])
    assert all(part.usage is None for part in asker(endpoint, way).parts)
