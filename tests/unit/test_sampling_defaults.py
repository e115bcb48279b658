"""generation_config.json: what requests that do not say are sampled with, and what is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest

from app.messages import EngineOptions
from app.sampling_defaults import SamplingDefaults, read_sampling_defaults
from app.wishes import Wishes
from streaming.errors import ModelUnsupported
from tests.unit.scripted_engine import MAX_MODEL_LEN, serve

# As Qwen and Llama ship theirs, fields included that say nothing about sampling.
RECOMMENDED = {
    "temperature": 0.6,
    "top_p": 0.9,
    "top_k": 20,
    "min_p": 0.05,
    "repetition_penalty": 1.05,
    "max_new_tokens": 12,
    "do_sample": True,
    "eos_token_id": [1, 2],
    "transformers_version": "5.23.0",
}
PATHS = {
    "/v1/completions": {"model": "toy", "prompt": "hi"},
    "/v1/chat/completions": {"model": "toy", "messages": [{"role": "user", "content": "hi"}]},
}


def read(**fields: object) -> SamplingDefaults:
    return read_sampling_defaults({"generation_config.json": json.dumps(fields).encode()})


async def sampling_of(path, defaults, **changes):
    """What the engine was asked for."""
    served = serve()
    served.service.model = dataclasses.replace(served.service.model, defaults=defaults)
    async with served.client() as client:
        response = await client.post(path, json=PATHS[path] | changes)
    assert response.status_code == 200, response.text
    return served.engine.submitted[0].sampling


@pytest.mark.parametrize("path", PATHS)
async def test_a_request_that_does_not_say_is_sampled_as_recommended(path):
    """Every number of the file counts where the request has none, or null."""
    for changes in ({}, dict.fromkeys(("temperature", "top_p", "top_k", "min_p", "repetition_penalty"))):
        sampling = await sampling_of(path, read(**RECOMMENDED), **changes)
        assert {name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k")} == {
            "temperature": 0.6,
            "top_p": 0.9,
            "top_k": 20,
        }
        assert (sampling.min_p, sampling.repetition_penalty, sampling.max_tokens) == (0.05, 1.05, 12)


@pytest.mark.parametrize("path", PATHS)
async def test_the_requests_word_counts_more(path):
    """What a request says is what it gets, the values that mean "off" too."""
    said = {"temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1, "max_tokens": 5}
    sampling = await sampling_of(path, read(**RECOMMENDED), **said)
    assert {name: getattr(sampling, name) for name in said} == said


async def test_no_answer_is_longer_than_the_file_says():
    """max_new_tokens is the server's limit, as vLLM has it."""
    assert (await sampling_of("/v1/completions", read(max_new_tokens=12), max_tokens=100)).max_tokens == 12


@pytest.mark.parametrize("path", PATHS)
async def test_without_the_file_nothing_is_changed(path):
    """No file and no field mean OpenAI's defaults."""
    assert read_sampling_defaults({}) == read(top_p=None) == SamplingDefaults()
    sampling = await sampling_of(path, SamplingDefaults())
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.repetition_penalty) == (1, 1, 0, 1)
    assert sampling.max_tokens == 16 or path == "/v1/chat/completions"
    assert sampling.max_tokens < MAX_MODEL_LEN


@pytest.mark.parametrize("top_k", [0, -1])
async def test_either_word_for_every_token_is_understood(top_k):
    """0 and -1 keep every token."""
    assert (await sampling_of("/v1/completions", read(top_k=top_k))).top_k == 0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_by_name(fields, words):
    """A recommendation out of range stops the start, and says how to go on."""
    with pytest.raises(ModelUnsupported, match=f"{words}.*--generation-config vllm"):
        read(**fields)


def test_the_file_can_be_ignored():
    """With generation_config "vllm" not even a broken one counts."""
    wishes = Wishes(dtype="auto", shard_count=None, warmup_prompt="", generation_config="vllm", engine=EngineOptions())
    assert wishes.sampling_defaults({"generation_config.json": b"no JSON"}) == SamplingDefaults()
