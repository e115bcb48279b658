"""Phi-3, Phi-3.5 and Phi-4: projections that are fused in the checkpoint already, rope over part of a head, longrope."""

from __future__ import annotations

from typing import Any

from app.families.checks import COMMON_FIELDS, COMMON_REQUIRED, Config, above_zero, anything, only, optional_positive
from app.families.decoder_config import DecoderConfig
from app.families.family import Family, Naming
from app.families.llama import contradiction, decoder_config
from app.families.rope import rope_check

_ROPE = rope_check(("default", "longrope", "su"), partial=True)
# The code beside old checkpoints is the one that transformers has taken over since.
_REMOTE_CODE = {
    "AutoConfig": "configuration_phi3.Phi3Config",
    "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
}


def _auto_map(value: Any) -> str:
    if value is None:
        return ""
    fine = isinstance(value, dict) and all(value.get(name, code) == code for name, code in _REMOTE_CODE.items())
    return "" if fine else "code beside the weights is never run"


def _contradiction(config: Config) -> str:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    original = config.get("original_max_position_embeddings")
    if "long_factor" in rope:
        if original is None:
            return "original_max_position_embeddings is missing"
        if rope.get("original_max_position_embeddings", original) != original:
            return "rope says another original_max_position_embeddings than the config"
    return contradiction(config)


def _decoder(config: Config) -> DecoderConfig:
    return decoder_config(config, sliding_window=config.get("sliding_window"))


PHI3 = Family(
    model_type="phi3",
    fields={
        **COMMON_FIELDS,
        "rope_parameters": _ROPE,
        "rope_scaling": _ROPE,
        "original_max_position_embeddings": optional_positive,
        "partial_rotary_factor": above_zero,
        "sliding_window": optional_positive,
        "embd_pdrop": anything,
        "resid_pdrop": anything,
        "auto_map": _auto_map,
        # Said by some checkpoints, computed by none.
        "attention_bias": only(False, None),
        "lm_head_bias": only(False, None),
        "mlp_bias": only(False, None),
        "full_attn_mod": only(1, None),
        "interpolate_factor": only(1, None),
    },
    required=COMMON_REQUIRED,
    contradiction=_contradiction,
    decoder=_decoder,
    naming=Naming(qkv=("qkv_proj",), gate_up=("gate_up_proj",)),
)
