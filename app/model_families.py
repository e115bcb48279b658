"""The families of our decoder: which config fields they know, which tensors they have, what lies together.

Pure tables and small functions, free of torch; `app.model_support` applies them and
`app.engine.models.decoder` computes them. A family is added here and there together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from streaming.messages import Group

Config = Mapping[str, Any]
# What is wrong with a field's value, or an empty string.
FieldCheck = Callable[[Any], str]


class TensorSpec(NamedTuple):
    """A tensor that the family's checkpoint must hold."""

    name: str
    shape: tuple[int, ...]


class Family(NamedTuple):
    """One architecture: `ignores` says which further tensors mean nothing."""

    model_type: str
    fields: Mapping[str, FieldCheck]
    required: tuple[str, ...]
    tensors: Callable[[Config], list[TensorSpec]]
    groups: Callable[[Config], tuple[Group, ...]]
    ignores: Callable[[str, Config], bool]


def _any(_value: Any) -> str:
    """A field that is computed with, or that changes nothing in inference."""
    return ""


def _positive(value: Any) -> str:
    return "" if type(value) is int and value > 0 else "must be a positive integer"


def _optional_positive(value: Any) -> str:
    return "" if value is None else _positive(value)


def _boolean(value: Any) -> str:
    return "" if value is None or isinstance(value, bool) else "must be true or false"


def _number(value: Any) -> str:
    return "" if isinstance(value, int | float) and not isinstance(value, bool) else "must be a number"


def _only(*accepted: Any) -> FieldCheck:
    return lambda value: "" if value in accepted else f"only {' or '.join(map(repr, accepted))} is served yet"


_ROPE_TYPES = ("default", "linear", "llama3")
_ROPE_KEYS = frozenset(
    {
        "rope_type",
        "type",
        "rope_theta",
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    }
)


def _rope(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, dict):
        return "must be an object"
    kind = value.get("rope_type", value.get("type", "default"))
    if kind not in _ROPE_TYPES:
        return f"rope type {kind!r} is not served yet, only {', '.join(_ROPE_TYPES)}"
    unknown = sorted(value.keys() - _ROPE_KEYS)
    return f"rope parameter {unknown[0]!r} is not understood" if unknown else ""


# What any config may carry without changing a logit in inference.
_INERT: dict[str, FieldCheck] = dict.fromkeys(
    (
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "initializer_range",
        "is_llama_config",
        "model_type",
        "pad_token_id",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "unsloth_version",
        "use_cache",
    ),
    _any,
)

_LLAMA_FIELDS: dict[str, FieldCheck] = _INERT | {
    "hidden_size": _positive,
    "intermediate_size": _positive,
    "num_hidden_layers": _positive,
    "num_attention_heads": _positive,
    "num_key_value_heads": _optional_positive,
    "head_dim": _optional_positive,
    "vocab_size": _positive,
    "max_position_embeddings": _positive,
    "rms_norm_eps": _number,
    "hidden_act": _only("silu"),
    "tie_word_embeddings": _boolean,
    "attention_bias": _boolean,
    "mlp_bias": _boolean,
    "rope_theta": _number,
    "rope_scaling": _rope,
    "rope_parameters": _rope,
    "rope_interleaved": _only(False, None),
    # 1 is the only value that transformers computes, too.
    "pretraining_tp": _only(1, None),
}


def _llama_tensors(config: Config) -> list[TensorSpec]:
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    tensors = [TensorSpec("model.embed_tokens.weight", (vocab, hidden))]
    for layer in range(config["num_hidden_layers"]):
        tensors += _llama_layer(config, f"model.layers.{layer}")
    tensors.append(TensorSpec("model.norm.weight", (hidden,)))
    if not config.get("tie_word_embeddings", False):
        tensors.append(TensorSpec("lm_head.weight", (vocab, hidden)))
    return tensors


def _llama_layer(config: Config, prefix: str) -> Iterator[TensorSpec]:
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    q = heads * head_dim
    kv = (config.get("num_key_value_heads") or heads) * head_dim
    projections = (
        ("self_attn.q_proj", (q, hidden), "attention_bias"),
        ("self_attn.k_proj", (kv, hidden), "attention_bias"),
        ("self_attn.v_proj", (kv, hidden), "attention_bias"),
        ("self_attn.o_proj", (hidden, q), "attention_bias"),
        ("mlp.gate_proj", (inner, hidden), "mlp_bias"),
        ("mlp.up_proj", (inner, hidden), "mlp_bias"),
        ("mlp.down_proj", (hidden, inner), "mlp_bias"),
    )
    for name, shape, bias in projections:
        yield TensorSpec(f"{prefix}.{name}.weight", shape)
        if config.get(bias):
            yield TensorSpec(f"{prefix}.{name}.bias", shape[:1])
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield TensorSpec(f"{prefix}.{name}.weight", (hidden,))


_FUSED = (
    ("self_attn.qkv_proj", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "attention_bias"),
    ("mlp.gate_up_proj", ("mlp.gate_proj", "mlp.up_proj"), "mlp_bias"),
)


def _llama_groups(config: Config) -> tuple[Group, ...]:
    """q, k, v and gate, up side by side: one matrix product each instead of five."""
    return tuple(
        Group(f"{prefix}.{name}.{part}", tuple(f"{prefix}.{member}.{part}" for member in members))
        for prefix in (f"model.layers.{layer}" for layer in range(config["num_hidden_layers"]))
        for name, members, bias in _FUSED
        for part in (("weight", "bias") if config.get(bias) else ("weight",))
    )


def _llama_ignores(name: str, config: Config) -> bool:
    """Old checkpoints carry rope's frequencies; tied ones may carry the head a second time."""
    return name.endswith(".rotary_emb.inv_freq") or (
        name == "lm_head.weight" and bool(config.get("tie_word_embeddings"))
    )


FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family(
        model_type="llama",
        fields=_LLAMA_FIELDS,
        required=(
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "vocab_size",
            "max_position_embeddings",
            "rms_norm_eps",
        ),
        tensors=_llama_tensors,
        groups=_llama_groups,
        ignores=_llama_ignores,
    )
}
