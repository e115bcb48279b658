"""app.model_support: what is served, how it is laid out, and that the rest is refused before a weight moves."""

from __future__ import annotations

import json

import pytest

from app.model_support import support
from streaming.errors import ModelUnsupported
from streaming.messages import Entry

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 10,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}


def shapes(**changes):
    """The tensors of `CONFIG`, by name."""
    result = {"model.embed_tokens.weight": (10, 8), "model.norm.weight": (8,)}
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        result |= {
            prefix + "self_attn.q_proj.weight": (8, 8),
            prefix + "self_attn.k_proj.weight": (4, 8),
            prefix + "self_attn.v_proj.weight": (4, 8),
            prefix + "self_attn.o_proj.weight": (8, 8),
            prefix + "mlp.gate_proj.weight": (16, 8),
            prefix + "mlp.up_proj.weight": (16, 8),
            prefix + "mlp.down_proj.weight": (8, 16),
            prefix + "input_layernorm.weight": (8,),
            prefix + "post_attention_layernorm.weight": (8,),
        }
    return result | changes


def ask(config=None, tensors=None, dtype="auto", stored="BF16", **files):
    """Support for a config and shapes by name."""
    encoded = {name.replace("_json", ".json"): json.dumps(content).encode() for name, content in files.items()}
    encoded["config.json"] = json.dumps(CONFIG if config is None else config).encode()
    entries = [Entry(name, stored, shape, "s", 0, 0) for name, shape in (tensors or shapes()).items()]
    return support(encoded, entries, dtype=dtype)


def test_a_llama_is_laid_out_with_fused_projections():
    """q, k, v lie side by side, and so do gate and up, in every layer."""
    model = ask()
    groups = {group.name: group.members for group in model.groups}
    prefix = "model.layers.1."
    assert groups[prefix + "self_attn.qkv_proj.weight"] == tuple(
        f"{prefix}self_attn.{part}_proj.weight" for part in "qkv"
    )
    assert groups[prefix + "mlp.gate_up_proj.weight"] == (
        prefix + "mlp.gate_proj.weight",
        prefix + "mlp.up_proj.weight",
    )
    assert {tensor.source_name for tensor in model.tensors} == shapes().keys()
    assert model.max_model_len_tokens == 32
    assert model.weights_bytes == 2 * sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in shapes().values())


@pytest.mark.parametrize(
    ("dtype", "stored", "expected"),
    [("auto", "F32", "BF16"), ("float32", "BF16", "F32"), ("float16", "BF16", "F16"), ("bfloat16", "F32", "BF16")],
)
def test_the_whole_model_has_one_dtype(dtype, stored, expected):
    """The word "auto" is the config's word, anything else the user's; the slot casts."""
    model = ask(dtype=dtype, stored=stored)
    assert {model.dtype, *(tensor.dtype for tensor in model.tensors)} == {expected}


def test_stop_tokens_come_from_the_generation_config_first():
    """As in transformers: generation_config.json wins, and may list several."""
    assert ask().stop_token_ids == (2,)
    assert ask(generation_config_json={"eos_token_id": [5, 6]}).stop_token_ids == (5, 6)
    assert ask({**CONFIG, "eos_token_id": None}).stop_token_ids == ()


def test_biases_are_wanted_where_the_config_says_so():
    """A config with attention_bias calls for the biases, fused like their weights."""
    biases = {
        f"model.layers.{layer}.self_attn.{part}_proj.bias": (size,)
        for layer in range(2)
        for part, size in (("q", 8), ("k", 4), ("v", 4), ("o", 8))
    }
    model = ask({**CONFIG, "attention_bias": True}, shapes(**biases))
    assert "model.layers.0.self_attn.qkv_proj.bias" in {group.name for group in model.groups}
    with pytest.raises(ModelUnsupported, match=r"lacks .*q_proj.bias"):
        ask({**CONFIG, "attention_bias": True})


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"])
def test_tensors_that_mean_nothing_are_not_fetched(name):
    """A tied head's copy and old rope buffers are left in the blob."""
    assert name not in {tensor.source_name for tensor in ask(tensors=shapes(**{name: (10, 8)})).tensors}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, "GPT2LMHeadModel"),
        ({"architectures": None}, "none"),
        ({"model_type": "mistral"}, "mistral"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2}}, "'dynamic' is not served"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2, "surprise": 1}}, "surprise"),
        ({"pretraining_tp": 2}, "pretraining_tp"),
        ({"hidden_size": "8"}, "hidden_size"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"torch_dtype": "float64"}, "float64"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(change, message):
    """One field that might change the mathematics refuses the model and says which."""
    with pytest.raises(ModelUnsupported, match=message):
        ask({**CONFIG, **change})


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (shapes(**{"model.norm.weight": (9,)}), r"model.norm.weight.* \[9\]"),
        (shapes(**{"model.layers.0.self_attn.q_norm.weight": (8,)}), "q_norm"),
        ({name: shape for name, shape in shapes().items() if "layers.1" not in name}, "lacks"),
    ],
)
def test_tensors_must_be_what_the_config_says(tensors, message):
    """Missing, misshapen and unexplained tensors refuse the model."""
    with pytest.raises(ModelUnsupported, match=message):
        ask(tensors=tensors)


def test_quantised_weights_are_refused():
    """A dtype that cannot be computed with is named."""
    with pytest.raises(ModelUnsupported, match="F8_E4M3"):
        ask(stored="F8_E4M3")


@pytest.mark.parametrize("files", [{}, {"config.json": b"{"}, {"config.json": b"[]"}])
def test_a_missing_or_broken_config_is_refused(files):
    """Without a config nothing is guessed."""
    with pytest.raises(ModelUnsupported, match=r"config\.json"):
        support(files, [])
