"""Qwen2, Qwen3 and Qwen3-MoE: biases or head norms in attention, windows in some layers, experts in some."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from app.families.checks import COMMON_REQUIRED, Config, anything, boolean, indices, only, optional_positive, positive
from app.families.decoder_config import DecoderConfig, ExpertsConfig, LayerConfig
from app.families.family import Family
from app.families.llama import FIELDS, contradiction, decoder_config

_FULL, _SLIDING = "full_attention", "sliding_attention"


def _layer_types(value: Any) -> str:
    fine = value is None or (isinstance(value, list) and all(kind in (_FULL, _SLIDING) for kind in value))
    return "" if fine else f"must be a list of {_FULL!r} and {_SLIDING!r}"


_WINDOW_FIELDS = {
    "use_sliding_window": boolean,
    "sliding_window": optional_positive,
    "max_window_layers": anything,
    "layer_types": _layer_types,
}


def _windows(config: Config) -> list[int | None]:
    """Each layer's window. Without `layer_types`, layers from `max_window_layers` on have it."""
    window = config.get("sliding_window") if config.get("use_sliding_window") else None
    count, kinds = config["num_hidden_layers"], config.get("layer_types")
    if window is None:
        return [None] * count
    kinds = kinds or [_SLIDING if layer >= config["max_window_layers"] else _FULL for layer in range(count)]
    return [window if kind == _SLIDING else None for kind in kinds]


def _window_contradiction(config: Config) -> str:
    kinds, count = config.get("layer_types"), config["num_hidden_layers"]
    if config.get("use_sliding_window"):
        if config.get("sliding_window") is None:
            return "use_sliding_window is true and there is no sliding_window"
        if kinds is None and type(config.get("max_window_layers")) is not int:
            return "use_sliding_window is true and max_window_layers is no number"
    elif kinds and _SLIDING in kinds:
        return f"layer_types has {_SLIDING!r} and use_sliding_window is not true"
    if kinds is not None and len(kinds) != count:
        return f"layer_types has {len(kinds)} entries for {count} layers"
    return contradiction(config)


def _qwen2(config: Config) -> DecoderConfig:
    return decoder_config(config, layers=[LayerConfig(window) for window in _windows(config)], qkv_bias=True)


def _qwen3(config: Config) -> DecoderConfig:
    bias = bool(config.get("attention_bias"))
    layers = [LayerConfig(window) for window in _windows(config)]
    return decoder_config(config, layers=layers, qkv_bias=bias, output_bias=bias, head_norms=True)


def _qwen3_moe(config: Config) -> DecoderConfig:
    bias = bool(config.get("attention_bias"))
    return decoder_config(config, layers=list(_moe_layers(config)), qkv_bias=bias, output_bias=bias, head_norms=True)


def _moe_layers(config: Config) -> Iterator[LayerConfig]:
    experts = ExpertsConfig(
        num_experts=_num_experts(config),
        experts_per_token=config["num_experts_per_tok"],
        intermediate_size=config["moe_intermediate_size"],
        normalised=bool(config["norm_topk_prob"]),
    )
    dense = set(config.get("mlp_only_layers") or ())
    for layer in range(config["num_hidden_layers"]):
        sparse = layer not in dense and (layer + 1) % config["decoder_sparse_step"] == 0
        yield LayerConfig(experts=experts if sparse else None)


def _num_experts(config: Config) -> int:
    return int(config.get("num_experts") or config.get("num_local_experts") or 0)


def _moe_contradiction(config: Config) -> str:
    experts, visited = _num_experts(config), config["num_experts_per_tok"]
    if config.get("num_local_experts") not in (None, experts) or not experts:
        return "num_experts is missing, or num_local_experts says otherwise"
    if visited > experts:
        return f"num_experts_per_tok {visited} is more than the {experts} experts"
    return contradiction(config)


_REQUIRED = (*COMMON_REQUIRED, "num_key_value_heads")

QWEN2 = Family(
    model_type="qwen2",
    fields={**FIELDS, **_WINDOW_FIELDS, "use_mrope": only(False, None)},
    required=_REQUIRED,
    contradiction=_window_contradiction,
    decoder=_qwen2,
)

QWEN3 = Family(
    model_type="qwen3",
    fields={**FIELDS, **_WINDOW_FIELDS, "attention_bias": boolean},
    required=(*_REQUIRED, "head_dim"),
    contradiction=_window_contradiction,
    decoder=_qwen3,
)

QWEN3_MOE = Family(
    model_type="qwen3_moe",
    fields={
        **FIELDS,
        "attention_bias": boolean,
        # transformers gives the window to all layers and forgets max_window_layers: nobody can say which is meant.
        "use_sliding_window": only(False, None),
        "sliding_window": optional_positive,
        "max_window_layers": anything,
        "num_experts": optional_positive,
        "num_local_experts": optional_positive,
        "num_experts_per_tok": positive,
        "moe_intermediate_size": positive,
        "norm_topk_prob": boolean,
        "decoder_sparse_step": positive,
        "mlp_only_layers": indices,
        "output_router_logits": anything,
        "router_aux_loss_coef": anything,
    },
    required=(
        *_REQUIRED,
        "head_dim",
        "num_experts_per_tok",
        "moe_intermediate_size",
        "norm_topk_prob",
        "decoder_sparse_step",
    ),
    contradiction=_moe_contradiction,
    decoder=_qwen3_moe,
)
