"""The random checkpoint: complete, of its shape, and with an answer that any right computation gives."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from app.families.registry import FAMILIES
from tools.random_checkpoint import SHAPES, write_checkpoint


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("random") / "tiny"
    return folder, write_checkpoint(folder, "tiny", shards=3)


def test_it_holds_exactly_the_tensors_that_its_config_calls_for(tiny):
    folder, _ = tiny
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    shards = {path.name: load_file(path) for path in folder.glob("*.safetensors")}
    assert len(shards) == 3
    for spec in FAMILIES["LlamaForCausalLM"].tensors(json.loads((folder / "config.json").read_text())):
        tensor = shards[weight_map[spec.name]].pop(spec.name)
        assert (tuple(tensor.shape), tensor.dtype) == (spec.shape, torch.bfloat16)
    assert not any(shards.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_planted_token_leads_by_the_margin_in_every_dtype(tiny, dtype):
    folder, planted = tiny
    assert json.loads((folder / "planted.json").read_text()) == json.loads(json.dumps(planted))
    model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
    with torch.inference_mode():
        logits = model(torch.tensor([planted["prompt_token_ids"]])).logits[0, -1].float()
    best = logits.topk(2)
    assert best.indices[0] == planted["token_id"]
    assert (best.values[0] - best.values[1]).item() == pytest.approx(planted["margin"], abs=0.5)


def test_the_planted_token_hangs_on_a_single_layer(tiny):
    """Weights that are landed wrongly anywhere must not give the right answer."""
    folder, planted = tiny
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        model.model.layers[0].mlp.down_proj.weight.copy_(torch.randn_like(model.model.layers[0].mlp.down_proj.weight))
        logits = model(torch.tensor([planted["prompt_token_ids"]])).logits[0, -1]
    margin = logits[planted["token_id"]] - logits.topk(2).values[1]
    assert margin < 0.9 * planted["margin"]


def test_the_tokenizer_says_which_token_a_text_was(tiny):
    """One text per token id, equal to the vocabulary's own, and a whole prompt survives the way there and back."""
    folder, planted = tiny
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == SHAPES["tiny"]["vocab_size"]
    for token_id in (256, planted["token_id"], SHAPES["tiny"]["vocab_size"] - 1):
        assert tokenizer.token_to_id(tokenizer.decode([token_id])) == token_id
    assert tokenizer.decode(tokenizer.encode("Hello, Wörld!").ids) == "Hello, Wörld!"


def test_the_sparse_shape_takes_no_disk(tmp_path):
    """60 GB that safetensors itself finds valid, and hardly a block of it."""
    assert write_checkpoint(tmp_path / "sparse", "sparse60") == {}
    shards = sorted((tmp_path / "sparse").glob("*.safetensors"))
    assert 58e9 < sum(path.stat().st_size for path in shards) < 62e9
    assert sum(path.stat().st_blocks * 512 for path in shards) < 1e6
    with safe_open(shards[-1], "pt") as last:
        assert not last.get_tensor("model.norm.weight").any()
