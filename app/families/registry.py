"""Every family that is served, by its architecture's name; a new one is a file and a line here."""

from __future__ import annotations

from collections.abc import Mapping

from app.families.checks import Config
from app.families.decoder_config import DecoderConfig
from app.families.family import Family
from app.families.llama import LLAMA, MISTRAL
from app.families.mixtral import MIXTRAL
from app.families.phi3 import PHI3
from app.families.qwen import QWEN2, QWEN3, QWEN3_MOE

FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": MISTRAL,
    "MixtralForCausalLM": MIXTRAL,
    "Phi3ForCausalLM": PHI3,
    "Qwen2ForCausalLM": QWEN2,
    "Qwen3ForCausalLM": QWEN3,
    "Qwen3MoeForCausalLM": QWEN3_MOE,
}


def decoder_config(config: Config) -> DecoderConfig:
    """What the decoder must know of a config that was accepted already."""
    return FAMILIES[config["architectures"][0]].decoder(config)
