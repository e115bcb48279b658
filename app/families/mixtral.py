"""Mixtral: Mistral with experts in every layer, under names of its own."""

from __future__ import annotations

from app.families.checks import COMMON_REQUIRED, Config, anything, optional_positive, positive
from app.families.decoder_config import DecoderConfig, ExpertsConfig, LayerConfig
from app.families.family import Family, Naming
from app.families.llama import FIELDS, contradiction, decoder_config


def _decoder(config: Config) -> DecoderConfig:
    experts = ExpertsConfig(
        num_experts=config["num_local_experts"],
        experts_per_token=config["num_experts_per_tok"],
        intermediate_size=config["intermediate_size"],
        normalised=True,
    )
    layer = LayerConfig(config.get("sliding_window"), experts)
    return decoder_config(config, layers=(layer,) * config["num_hidden_layers"], default_theta=1_000_000.0)


def _contradiction(config: Config) -> str:
    experts, visited = config["num_local_experts"], config["num_experts_per_tok"]
    if visited > experts:
        return f"num_experts_per_tok {visited} is more than the {experts} experts"
    return contradiction(config)


MIXTRAL = Family(
    model_type="mixtral",
    fields={
        **FIELDS,
        "sliding_window": optional_positive,
        "num_local_experts": positive,
        "num_experts_per_tok": positive,
        "output_router_logits": anything,
        "router_aux_loss_coef": anything,
        "router_jitter_noise": anything,
    },
    required=(*COMMON_REQUIRED, "num_key_value_heads", "num_local_experts", "num_experts_per_tok"),
    contradiction=_contradiction,
    decoder=_decoder,
    naming=Naming(experts="block_sparse_moe", expert_gate_up=("w1", "w3"), expert_down="w2"),
)
