"""app.families: real configs are understood to the last field, and whatever is not understood is refused by name."""

from __future__ import annotations

import json
import math

import pytest

from app.families.decoder_config import LayerConfig, LongRopeScaling
from app.families.registry import FAMILIES, decoder_config
from app.model_support import support
from streaming.errors import ModelUnsupported
from streaming.messages import Entry
from tests.unit.hub_configs import HUB


def ask(config, tensors=None):
    """Support for a config, with the tensors that it calls for or with others."""
    specs = FAMILIES[config["architectures"][0]].tensors(config) if tensors is None else tensors
    entries = [Entry(name, "BF16", shape, "s", 0, 0) for name, shape in specs]
    return support({"config.json": json.dumps(config).encode()}, entries)


def refused(name, **changes):
    """Why a hub model with these changes is refused, before its tensors are looked at."""
    config = HUB[name][0] | changes
    config = {field: value for field, value in config.items() if value is not ...}
    with pytest.raises(ModelUnsupported) as caught:
        ask(config, tensors=[])
    return str(caught.value)


@pytest.mark.parametrize("name", HUB)
def test_a_hub_model_is_accepted_with_every_parameter_that_it_has(name):
    """As many parameters as the model's makers count, in one dtype, and the whole context."""
    config, parameters = HUB[name]
    model = ask(config)
    assert model.weights_bytes == 2 * parameters
    assert model.max_model_len_tokens == config["max_position_embeddings"]
    assert {tensor.dtype for tensor in model.tensors} == {"BF16"}


@pytest.mark.parametrize("name", HUB)
def test_groups_are_the_decoders_matrices(name):
    """Every tensor is stored once, and what is stacked has one inner shape."""
    model = ask(HUB[name][0])
    shapes = dict(FAMILIES[model.architecture].tensors(HUB[name][0]))
    stored = {tensor.stored_name for tensor in model.tensors}
    members = [member for group in model.groups for member in group.members]
    assert len(stored) == len(model.tensors) == len(shapes)
    assert len(members) == len(set(members))
    assert stored >= set(members)
    for group in model.groups:
        assert len({shapes[member][1:] for member in group.members}) == 1


@pytest.mark.parametrize("name", HUB)
def test_an_unknown_field_refuses_any_model(name):
    """A field that nobody has read might change the mathematics."""
    assert "'surprise' = 1 is not understood" in refused(name, surprise=1)


@pytest.mark.parametrize("name", HUB)
@pytest.mark.parametrize("field", ["hidden_act", "rope_theta", "hidden_size", "num_attention_heads", "vocab_size"])
def test_a_value_that_is_not_understood_refuses_any_model(name, field):
    """The common fields are checked in every family."""
    assert field in refused(name, **{field: "gelu"})


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("Mistral-7B-v0.3", {"layer_types": ["full_attention"] * 32}, "layer_types"),
        ("Mistral-7B-v0.3", {"sliding_window": 0}, "sliding_window"),
        ("Mistral-7B-v0.3", {"num_key_value_heads": ...}, "num_key_value_heads"),
        ("Mistral-7B-v0.3", {"attention_bias": False}, "attention_bias"),
        ("Qwen2.5-7B", {"use_mrope": True}, "use_mrope"),
        ("Qwen2.5-7B", {"use_sliding_window": True, "sliding_window": None}, "there is no sliding_window"),
        ("Qwen2.5-7B", {"use_sliding_window": True, "max_window_layers": None}, "max_window_layers"),
        ("Qwen2.5-7B", {"layer_types": ["chunked_attention"] * 28}, "layer_types"),
        ("Qwen2.5-7B", {"layer_types": ["sliding_attention"] * 28}, "use_sliding_window is not true"),
        ("Qwen2.5-7B", {"layer_types": ["full_attention"] * 27}, "27 entries for 28 layers"),
        ("Qwen2.5-7B", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "'original_max_position_embeddings'"),
        ("Qwen2.5-7B", {"rope_scaling": {"type": "yarn", "rope_type": "linear", "factor": 2}}, "yarn"),
        ("Qwen2.5-7B", {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}, "mrope"),
        ("Qwen2.5-7B", {"rope_scaling": {"type": "linear", "factor": 2, "beta_fast": 32}}, "beta_fast"),
        ("Qwen2.5-7B", {"rope_scaling": {"type": "linear", "factor": 2, "partial_rotary_factor": 0.5}}, "partial"),
        (
            "Qwen2.5-7B",
            {"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"rope_type": "default"}},
            "both rope_parameters and rope_scaling",
        ),
        ("Qwen3-8B", {"head_dim": ...}, "head_dim"),
        ("Qwen3-8B", {"num_key_value_heads": 5}, "no multiple of num_key_value_heads"),
        ("Phi-4", {"partial_rotary_factor": 0.51}, "cannot be rotated in pairs"),
        ("Phi-4", {"rope_scaling": {"type": "linear", "factor": 2}}, "linear"),
        ("Phi-4", {"head_dim": 64}, "head_dim"),
        ("Phi-4", {"attention_bias": True}, "attention_bias"),
        ("Phi-3.5-mini", {"original_max_position_embeddings": ...}, "original_max_position_embeddings is missing"),
        ("Phi-3.5-mini", {"auto_map": {"AutoModelForCausalLM": "mine.Phi3"}}, "never run"),
        ("Phi-3.5-mini", {"partial_rotary_factor": 0.75}, "48 factors for 36 pairs"),
        (
            "Phi-3.5-mini",
            {"rope_scaling": {"type": "longrope", "long_factor": [1.0] * 48}},
            "'short_factor' is missing",
        ),
        ("Mixtral-8x7B", {"num_local_experts": ...}, "num_local_experts"),
        ("Mixtral-8x7B", {"num_experts_per_tok": 9}, "more than the 8 experts"),
        ("Mixtral-8x7B", {"shared_expert_intermediate_size": 64}, "shared_expert_intermediate_size"),
        ("Qwen3-30B-A3B", {"num_experts": ...}, "num_experts is missing"),
        ("Qwen3-30B-A3B", {"num_local_experts": 64}, "num_local_experts says otherwise"),
        ("Qwen3-30B-A3B", {"norm_topk_prob": ...}, "norm_topk_prob"),
        ("Qwen3-30B-A3B", {"use_sliding_window": True, "sliding_window": 64}, "use_sliding_window"),
        ("Qwen3-30B-A3B", {"mlp_only_layers": [-1]}, "mlp_only_layers"),
        ("Qwen3-30B-A3B", {"shared_expert_intermediate_size": 64}, "shared_expert_intermediate_size"),
    ],
)
def test_what_a_family_does_not_understand_is_refused_by_name(name, changes, message):
    """One field or one pair of fields, and the message says which."""
    assert message in refused(name, **changes)


def test_biases_and_head_norms_belong_to_their_families():
    """Qwen2's projections of attention have biases but for the last; Qwen3's heads have norms."""
    qwen2 = {name for name, _ in FAMILIES["Qwen2ForCausalLM"].tensors(HUB["Qwen2.5-7B"][0])}
    assert "model.layers.0.self_attn.v_proj.bias" in qwen2
    assert "model.layers.0.self_attn.o_proj.bias" not in qwen2
    qwen3 = dict(FAMILIES["Qwen3ForCausalLM"].tensors(HUB["Qwen3-8B"][0]))
    assert qwen3["model.layers.35.self_attn.k_norm.weight"] == (128,)


def test_phi3_lands_as_it_is_fused():
    """Its checkpoint has q, k, v and gate, up side by side already."""
    model = ask(HUB["Phi-4"][0])
    assert model.groups == ()
    assert "model.layers.0.self_attn.qkv_proj.weight" in {tensor.stored_name for tensor in model.tensors}


def test_a_layers_experts_are_two_matrices():
    """Gate and up of each expert side by side, then the next expert's; all downs in the same order."""
    model = ask(HUB["Mixtral-8x7B"][0])
    groups = {group.name: group.members for group in model.groups}
    experts = "model.layers.3.block_sparse_moe.experts"
    gate_up = groups["model.layers.3.mlp.experts.gate_up_proj.weight"]
    assert gate_up[:4] == tuple(f"{experts}.{part}.weight" for part in ("0.w1", "0.w3", "1.w1", "1.w3"))
    down = groups["model.layers.3.mlp.experts.down_proj.weight"]
    assert down == tuple(f"{experts}.{expert}.w2.weight" for expert in range(8))
    renamed = {tensor.source_name: tensor.stored_name for tensor in model.tensors}
    assert renamed["model.layers.3.block_sparse_moe.gate.weight"] == "model.layers.3.mlp.gate.weight"


def test_layers_have_the_windows_and_experts_that_the_config_gives_them():
    """By max_window_layers, by layer_types, by decoder_sparse_step and by mlp_only_layers."""
    qwen2 = HUB["Qwen2.5-7B"][0] | {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 26}
    assert decoder_config(qwen2).layers[25:] == (LayerConfig(), LayerConfig(9), LayerConfig(9))
    kinds = ["sliding_attention", *["full_attention"] * 27]
    assert decoder_config(qwen2 | {"layer_types": kinds}).layers[:2] == (LayerConfig(9), LayerConfig())
    moe = HUB["Qwen3-30B-A3B"][0] | {"decoder_sparse_step": 2, "mlp_only_layers": [3]}
    assert [layer.experts is not None for layer in decoder_config(moe).layers[:6]] == [0, 1, 0, 0, 0, 1]


def test_mistral_has_a_window_unless_it_is_switched_off():
    """An absent field is transformers' default, null is none."""
    config = HUB["Mistral-7B-v0.3"][0]
    without = {field: value for field, value in config.items() if field != "sliding_window"}
    assert decoder_config(config).layers[0].sliding_window is None
    assert decoder_config(without).layers[0].sliding_window == 4096


def test_longrope_says_how_far_the_context_is_stretched():
    """The attention factor follows from the two contexts, as in the paper."""
    rope = decoder_config(HUB["Phi-3.5-mini"][0]).rope
    assert isinstance(rope.scaling, LongRopeScaling)
    assert rope.rotary_dim == 96
    assert rope.attention_factor == pytest.approx(math.sqrt(1 + math.log(32) / math.log(4096)))
