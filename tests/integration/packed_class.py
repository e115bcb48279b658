"""Tiny random models that only transformers computes, laid out as engine, server and loader would."""

from __future__ import annotations

import functools

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.integration.packed_model import PackedModel, pack

_SIZES = {
    "vocab_size": 131,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
_GATED = _SIZES | {"intermediate_size": 96, "num_key_value_heads": 2}
_GEMMA = _GATED | {"head_dim": 24, "query_pre_attn_scalar": 20, "sliding_window": 5}
_EXPERTS = _GATED | {"num_experts": 6, "num_experts_per_tok": 2}

VARIANTS = {
    "gpt2": ("gpt2", {"vocab_size": 131, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256}),
    "gpt2, scaled by layer": (
        "gpt2",
        {"vocab_size": 131, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 64}
        | {"scale_attn_by_inverse_layer_idx": True, "tie_word_embeddings": False},
    ),
    "gpt_neox": ("gpt_neox", _SIZES | {"intermediate_size": 96}),
    "olmo2": ("olmo2", _GATED),
    "gemma2": ("gemma2", _GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3": (
        "gemma3_text",
        _GEMMA | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "olmoe": ("olmoe", _EXPERTS),
    "qwen2_moe": (
        "qwen2_moe",
        _EXPERTS | {"moe_intermediate_size": 40, "shared_expert_intermediate_size": 48, "decoder_sparse_step": 2},
    ),
    "granite": ("granite", _GATED | {"logits_scaling": 3.0, "attention_multiplier": 0.3, "residual_multiplier": 0.5}),
}


@functools.cache
def packed_class(variant: str, dtype: torch.dtype = torch.float32) -> PackedModel:
    """A tiny random model of one of `VARIANTS`."""
    model_type, shape = VARIANTS[variant]
    config = AutoConfig.for_model(model_type, **shape, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    torch.manual_seed(1)
    reference = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            is_norm = "norm" in name or "ln_" in name
            parameter.normal_(mean=float(is_norm and "gemma" not in model_type), std=0.2)
    packed = pack(reference.to(dtype))
    assert packed.transformers_dtype is not None  # it is not our own decoder that is tried
    return packed
