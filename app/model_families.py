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
    """One architecture.

    `ignores` says which further tensors mean nothing, `contradiction` what is wrong between fields.
    """

    model_type: str
    fields: Mapping[str, FieldCheck]
    required: tuple[str, ...]
    tensors: Callable[[Config], list[TensorSpec]]
    groups: Callable[[Config], tuple[Group, ...]]
    kv_elements_per_token: Callable[[Config], int]
    ignores: Callable[[str, Config], bool]
    contradiction: Callable[[Config], str]


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


def _above_zero(value: Any) -> str:
    return _number(value) or ("" if value > 0 else "must be above 0")


def _text(value: Any) -> str:
    return "" if value is None or isinstance(value, str) else "must be a text"


def _names(value: Any) -> str:
    fine = isinstance(value, list) and value and all(isinstance(name, str) for name in value)
    return "" if fine else "must be a list of names"


def token_ids_problem(value: Any) -> str:
    """What is wrong with an `eos_token_id`: it may be absent, one id or several."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    return "" if all(type(token_id) is int and token_id >= 0 for token_id in ids) else "must be token ids"


def _only(*accepted: Any) -> FieldCheck:
    return lambda value: "" if value in accepted else f"only {' or '.join(map(repr, accepted))} is served yet"


# What each type of rope must say; guessing a factor would be a wrong answer without a word.
_ROPE_NEEDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
_ROPE_KEYS = frozenset({"rope_type", "type", "rope_theta", *_ROPE_NEEDS["llama3"]})


def _rope(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, dict):
        return "must be an object"
    kind = value.get("rope_type", value.get("type", "default"))
    if kind not in _ROPE_NEEDS:
        return f"rope type {kind!r} is not served yet, only {', '.join(_ROPE_NEEDS)}"
    unknown = sorted(value.keys() - _ROPE_KEYS)
    if unknown:
        return f"rope parameter {unknown[0]!r} is not understood"
    for name in _ROPE_NEEDS[kind]:
        if problem := _above_zero(value.get(name)):
            return f"rope parameter {name!r} {problem}"
    return _above_zero(value.get("rope_theta", 1))


# What any config may carry without changing a logit in inference.
_INERT: dict[str, FieldCheck] = dict.fromkeys(
    (
        "_name_or_path",
        "attention_dropout",
        "bos_token_id",
        "initializer_range",
        "is_llama_config",
        "pad_token_id",
        "transformers.js_config",
        "transformers_version",
        "unsloth_version",
        "use_cache",
    ),
    _any,
)

_LLAMA_FIELDS: dict[str, FieldCheck] = _INERT | {
    "architectures": _names,
    "model_type": _text,
    "dtype": _text,
    "torch_dtype": _text,
    "eos_token_id": token_ids_problem,
    "hidden_size": _positive,
    "intermediate_size": _positive,
    "num_hidden_layers": _positive,
    "num_attention_heads": _positive,
    "num_key_value_heads": _optional_positive,
    "head_dim": _optional_positive,
    "vocab_size": _positive,
    "max_position_embeddings": _positive,
    "rms_norm_eps": _above_zero,
    "hidden_act": _only("silu"),
    "tie_word_embeddings": _boolean,
    "attention_bias": _boolean,
    "mlp_bias": _boolean,
    "rope_theta": _above_zero,
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
    head_dim, kv = _llama_heads(config)
    q = heads * head_dim
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


def _llama_heads(config: Config) -> tuple[int, int]:
    """Channels of one head, and of all key heads together."""
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    return head_dim, int((config.get("num_key_value_heads") or heads) * head_dim)


def _llama_kv_elements(config: Config) -> int:
    """Keys and values of one token in every layer."""
    return 2 * int(config["num_hidden_layers"]) * _llama_heads(config)[1]


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


def _llama_contradiction(config: Config) -> str:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    if not config.get("head_dim") and hidden % heads:
        return f"hidden_size {hidden} is no multiple of num_attention_heads {heads}, and there is no head_dim"
    kv_heads = config.get("num_key_value_heads") or heads
    if heads % kv_heads:
        return f"num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"
    return ""


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
        kv_elements_per_token=_llama_kv_elements,
        ignores=_llama_ignores,
        contradiction=_llama_contradiction,
    )
}
