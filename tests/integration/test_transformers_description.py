"""What the engine says of a config that only transformers knows: parameters and sizes, or why it is refused."""

from __future__ import annotations

import json

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from app.described_model import described_support, description_request
from app.engine.transformers_description import describe
from app.model_support import NoFamily, SupportedModel, support
from streaming.errors import ModelUnsupported
from streaming.messages import Entry

OLMO2 = {
    "vocab_size": 131,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
OLMOE = OLMO2 | {"num_experts": 4, "num_experts_per_tok": 2}
GPT2 = {"vocab_size": 131, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}


def checkpoint(model_type: str, **shape) -> tuple[dict, list[Entry]]:
    """The config and the tensors of a tiny model, under the names of its own class."""
    config = AutoConfig.for_model(model_type, **shape, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    model = AutoModelForCausalLM.from_config(config)
    tied = model.all_tied_weights_keys
    entries = [
        Entry(name, "F32", tuple(tensor.shape), "model.safetensors", 0, 0)
        for name, tensor in model.state_dict().items()
        if name not in tied
    ]
    return json.loads(config.to_json_string()) | {"architectures": [type(model).__name__]}, entries


def served(config: dict, entries: list[Entry], dtype: str = "auto") -> SupportedModel:
    files = {"config.json": json.dumps(config).encode()}
    request = description_request(files, entries, dtype=dtype)
    return described_support(files, entries, request, describe(request))


def refusal(config: dict, entries: list[Entry]) -> str:
    with pytest.raises(ModelUnsupported) as caught:
        served(config, entries)
    return str(caught.value)


def named(config: dict) -> tuple[dict, list[Entry]]:
    """A config beside a checkpoint of one tensor."""
    return config, [Entry("x.weight", "F32", (1,), "model.safetensors", 0, 0)]


def test_names_without_the_base_models_prefix_are_found():
    """The first GPT-2 on the hub says `wte.weight` and carries its causal masks."""
    config, entries = checkpoint("gpt2", **GPT2)
    old = [Entry(entry.name.removeprefix("transformer."), *list(_rest(entry))) for entry in entries]
    old += [Entry(f"h.{layer}.attn.bias", "F32", (1, 1, 128, 128), "model.safetensors", 0, 0) for layer in range(2)]
    stored = {layout.stored_name: layout.source_name for layout in served(config, old).tensors}
    assert stored["transformer.h.1.attn.c_attn.weight"] == "h.1.attn.c_attn.weight"
    assert stored.keys() == {entry.name for entry in entries}


def _rest(entry: Entry) -> tuple:
    return entry.dtype, entry.shape, entry.shard, entry.start, entry.end


def test_sizes_follow_from_the_class():
    """Room for the cache, the longest sequence and the weights' dtype are what the class and --dtype mean."""
    config, entries = checkpoint("gpt2", **GPT2)
    model = served(config, entries, dtype="bfloat16")
    assert (model.max_model_len_tokens, model.vocab_size) == (128, 131)
    assert model.kv_bytes_per_token == 2 * 2 * 64 * 2
    assert {layout.dtype for layout in model.tensors} == {"BF16"}
    assert model.transformers_dtype == "BF16"


def test_experts_of_a_checkpoint_are_laid_side_by_side():
    """Each expert's gate and up lie together, expert after expert, as the class holds them stacked."""
    config, entries = checkpoint("olmoe", **OLMOE)
    prefix = "model.layers.0.mlp.experts"
    for layer in range(2):
        entries = [entry for entry in entries if not entry.name.startswith(f"model.layers.{layer}.mlp.experts")]
        for expert in range(4):
            for part, size in (("gate_proj", (96, 64)), ("up_proj", (96, 64)), ("down_proj", (64, 96))):
                name = f"model.layers.{layer}.mlp.experts.{expert}.{part}.weight"
                entries.append(Entry(name, "F32", size, "model.safetensors", 0, 0))
    groups = {group.name: group.members for group in served(config, entries).groups}
    assert groups[f"{prefix}.gate_up_proj"][:3] == tuple(
        f"{prefix}.{part}.weight" for part in ("0.gate_proj", "0.up_proj", "1.gate_proj")
    )
    assert groups[f"{prefix}.down_proj"] == tuple(f"{prefix}.{expert}.down_proj.weight" for expert in range(4))
    assert "lacks some" in refusal(config, [entry for entry in entries if entry.name != f"{prefix}.3.up_proj.weight"])
    assert "4, 64, 96" in refusal(config, [entry for entry in entries if entry.name != f"{prefix}.3.down_proj.weight"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda entries: entries[1:], "lacks 'model.embed_tokens.weight'"),
        (lambda entries: [*entries, Entry("extra.weight", "F32", (3,), "s", 0, 0)], "holds 'extra.weight'"),
        (lambda entries: [Entry("model.embed_tokens.weight", "F32", (131, 32), "s", 0, 0), *entries[1:]], "131, 32"),
        (lambda entries: [Entry("model.embed_tokens.weight", "I8", (131, 64), "s", 0, 0), *entries[1:]], "as I8"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(spoil, message):
    """Missing, left over, of another shape, quantised."""
    config, entries = checkpoint("olmo2", **OLMO2)
    assert message in refusal(config, spoil(entries))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"}, "an encoder with a decoder"),
        ({"architectures": ["MambaForCausalLM"], "model_type": "mamba"}, "MambaForCausalLM does not let its attention"),
        ({"architectures": ["BloomForCausalLM"], "model_type": "bloom"}, "BloomForCausalLM does not let its attention"),
        ({"architectures": ["BertLMHeadModel"], "model_type": "bert", "is_decoder": True}, "is an encoder"),
        ({"architectures": ["BertForMaskedLM"], "model_type": "bert"}, "no causal language model"),
        ({"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"}, "made of several models"),
        ({"architectures": ["NewForCausalLM"], "model_type": "new"}, "'new') is unknown to transformers"),
        ({"architectures": ["NewForCausalLM"], "model_type": "new", "auto_map": {"AutoModel": "x.Y"}}, "never run"),
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "quantization_config": {"bits": 4}}, "unquant"),
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_layer": "three"}, "refuses it"),
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "surprise": 1}, "'surprise' = 1 is not under"),
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "add_cross_attention": True}, "cross_attention"),
        ({}, "architecture '(none)'"),
    ],
)
def test_what_is_not_served_is_refused_by_name(config, message):
    """No weight is needed to say so."""
    assert message in refusal(*named(config))


@pytest.mark.parametrize(
    ("model_type", "shape", "message"),
    [
        ("gpt_oss", OLMO2 | {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2}, "'s_aux'"),
        ("olmo2", OLMO2 | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "'dynamic'"),
        ("gemma3_text", OLMO2 | {"head_dim": 16, "use_bidirectional_attention": True}, "looks ahead"),
        ("lfm2", OLMO2 | {"layer_types": ["conv", "full_attention"]}, "convolution"),
    ],
)
def test_attention_that_ours_cannot_express_is_refused(model_type, shape, message):
    """Sinks, rope that depends on the batch, bidirectional attention, layers that do not attend."""
    assert message in refusal(*checkpoint(model_type, **shape))


def test_an_architecture_of_ours_with_a_config_that_is_not_is_served():
    """A Llama with another activation, which its family does not accept."""
    config, entries = checkpoint("llama", **OLMO2, hidden_act="gelu")
    files = {"config.json": json.dumps(config).encode()}
    with pytest.raises(NoFamily, match="hidden_act"):
        support(files, entries)
    assert served(config, entries).kv_bytes_per_token == 2 * 2 * 2 * 16 * 4
