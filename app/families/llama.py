"""Llama and Mistral, and what the other families take over from them."""

from __future__ import annotations

from collections.abc import Sequence

from app.families.checks import (
    COMMON_FIELDS,
    COMMON_REQUIRED,
    Config,
    anything,
    boolean,
    only,
    optional_positive,
)
from app.families.decoder_config import DecoderConfig, LayerConfig
from app.families.family import Family
from app.families.rope import USUAL_KINDS, rope_check, rope_config, rope_contradiction

FIELDS = {
    **COMMON_FIELDS,
    "head_dim": optional_positive,
    "rope_parameters": rope_check(USUAL_KINDS),
    "rope_scaling": rope_check(USUAL_KINDS),
}


def head_dim(config: Config) -> int:
    """Channels of one head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def contradiction(config: Config) -> str:
    """What is wrong between the shapes, or in what is said of rope."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    if not config.get("head_dim") and hidden % heads:
        return f"hidden_size {hidden} is no multiple of num_attention_heads {heads}, and there is no head_dim"
    kv_heads = config.get("num_key_value_heads") or heads
    if heads % kv_heads:
        return f"num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"
    return rope_contradiction(config, head_dim(config))


def decoder_config(
    config: Config,
    *,
    sliding_window: int | None = None,
    layers: Sequence[LayerConfig] | None = None,
    qkv_bias: bool = False,
    output_bias: bool = False,
    mlp_bias: bool = False,
    head_norms: bool = False,
    default_theta: float = 10_000.0,
) -> DecoderConfig:
    """A Llama of the config's shapes with these differences; without `layers`, all are dense and have the same window."""
    heads = config["num_attention_heads"]
    return DecoderConfig(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=head_dim(config),
        max_position_embeddings=config["max_position_embeddings"],
        rms_norm_eps=config["rms_norm_eps"],
        tie_word_embeddings=bool(config.get("tie_word_embeddings")),
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        mlp_bias=mlp_bias,
        head_norms=head_norms,
        rope=rope_config(config, head_dim(config), default_theta=default_theta),
        layers=tuple(layers or (LayerConfig(sliding_window),) * config["num_hidden_layers"]),
    )


def _llama(config: Config) -> DecoderConfig:
    attention_bias = bool(config.get("attention_bias"))
    return decoder_config(
        config, qkv_bias=attention_bias, output_bias=attention_bias, mlp_bias=bool(config.get("mlp_bias"))
    )


def _mistral(config: Config) -> DecoderConfig:
    # The window is there unless it is switched off: that is what a config without the field meant.
    return decoder_config(config, sliding_window=config.get("sliding_window", 4096))


LLAMA = Family(
    model_type="llama",
    fields={
        **FIELDS,
        "attention_bias": boolean,
        "mlp_bias": boolean,
        "is_llama_config": anything,
        "rope_interleaved": only(False, None),
        # 1 is the only value that transformers computes, too.
        "pretraining_tp": only(1, None),
    },
    required=COMMON_REQUIRED,
    contradiction=contradiction,
    decoder=_llama,
)

MISTRAL = Family(
    model_type="mistral",
    fields={**FIELDS, "sliding_window": optional_positive},
    # Its default is not the number of heads, so nothing is guessed.
    required=(*COMMON_REQUIRED, "num_key_value_heads"),
    contradiction=contradiction,
    decoder=_mistral,
)
