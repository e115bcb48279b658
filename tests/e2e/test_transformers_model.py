"""An architecture that only transformers knows, served from a folder as any other."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from tests.coldstream import Server, serving, wait_for

PROMPTS = ["Once upon a time", "def fibonacci(n):", "The capital of France is not a city of"]


@pytest.fixture(scope="module")
def gpt2_dir(tmp_path_factory):
    """A tiny random GPT-2 with a tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [], trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=["<end>"], show_progress=False)
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(3)
    shape = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128, "initializer_range": 0.4}
    config = GPT2Config(vocab_size=257, **shape, bos_token_id=0, eos_token_id=0, tie_word_embeddings=False)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(gpt2_dir, tmp_path_factory):
    """It, served."""
    with serving(str(gpt2_dir), log_path=tmp_path_factory.mktemp("server") / "log") as running:
        running.wait_ready(120)
        yield running


@pytest.fixture(scope="module")
def texts(gpt2_dir):
    """What transformers' `generate` answers to `PROMPTS`."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(gpt2_dir)
    model = GPT2LMHeadModel.from_pretrained(gpt2_dir)
    answers = []
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=16, do_sample=False, pad_token_id=0)
        answers.append(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    assert len(set(answers)) == len(answers)
    return answers


def answers(server: Server) -> list[str]:
    """What the server answers to `PROMPTS`, sent together."""
    choices = server.complete(PROMPTS, max_tokens=16)["choices"]
    return [choice["text"] for choice in sorted(choices, key=lambda choice: choice["index"])]


def test_a_gpt2_folder_answers_as_transformers(server, texts):
    """The text is that of `generate`; the log says why transformers computes it, the ledger how long that took."""
    assert answers(server) == texts
    assert "architecture 'GPT2LMHeadModel' (model_type 'gpt2') is of no family of our decoder" in server.log()
    assert "transformers' GPT2LMHeadModel bound to the arena" in server.log()
    phases = {phase["name"] for phase in server.client.get("/startupz").json()["phases"]}
    assert "engine.transformers" in phases


def test_another_engine_binds_to_the_same_weights(server, texts):
    """An engine that dies is followed by one that answers the same."""
    server.child("app.engine").kill()
    wait_for(lambda: server.health()[0] != 200)
    server.wait_ready(120)
    assert answers(server) == texts


def test_a_context_beyond_the_learned_positions_is_refused(server):
    """The class' own limit is the server's."""
    body = {"model": "m", "prompt": "x" * 200, "max_tokens": 1}
    answer = server.client.post("/v1/completions", json=body)
    assert answer.status_code == 400
    assert "128" in answer.text
