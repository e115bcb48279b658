"""Tiny random Llama models of transformers, and their weights packed as the loader would lay them out."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from streaming.messages import Extent

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16"}
_FUSED = {
    "q_proj": ("qkv_proj", ("q_proj", "k_proj", "v_proj")),
    "gate_proj": ("gate_up_proj", ("gate_proj", "up_proj")),
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
VARIANTS = {
    "gqa, tied": {"tie_word_embeddings": True},
    "mha, untied": {"num_key_value_heads": 4},
    "mqa": {"num_key_value_heads": 1},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "llama3 rope": {"rope_parameters": _LLAMA3_ROPE},
    "linear rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}},
    "wide heads": {"head_dim": 24},
}


@dataclass(frozen=True)
class PackedLlama:
    """A reference model, and what the engine is told of it."""

    reference: LlamaForCausalLM
    config_json: bytes
    extents: dict[str, Extent]
    arena: bytes


def packed_llama(dtype: torch.dtype = torch.float32, **changes) -> PackedLlama:
    """A tiny Llama with random weights, biases and norms included."""
    shape = {
        "vocab_size": 131,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
    config = LlamaConfig(**shape | changes, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    torch.manual_seed(1)
    reference = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.normal_(mean=1.0 if parameter.shape == (config.hidden_size,) else 0.0, std=0.2)
    reference.to(dtype)
    arena, extents = _pack(reference)
    return PackedLlama(reference, json.dumps(config.to_dict()).encode(), extents, arena)


def _pack(model: LlamaForCausalLM) -> tuple[bytes, dict[str, Extent]]:
    tensors = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    arena, extents = bytearray(), {}
    for name in list(tensors):
        if name in tensors:
            stored_name, tensor = _group(name, tensors)
            arena += bytes(-len(arena) % 256)
            extents[stored_name] = Extent(_NAMES[tensor.dtype], tuple(tensor.shape), len(arena), tensor.nbytes)
            arena += tensor.contiguous().view(torch.uint8).numpy().tobytes()
    return bytes(arena), extents


def _group(name: str, tensors: dict[str, torch.Tensor]) -> tuple[str, torch.Tensor]:
    """The tensor called `name`, or the matrix that begins with it; its members leave `tensors`."""
    for first, (fused, members) in _FUSED.items():
        if f".{first}." in name:
            parts = [tensors.pop(name.replace(first, member)) for member in members]
            return name.replace(first, fused), torch.cat(parts)
    return name, tensors.pop(name)
