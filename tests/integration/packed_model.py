"""Tiny random models of transformers, saved as the hub has them, and laid out as server and loader would."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from app.described_model import described_support, description_request
from app.model_support import NoFamily, SupportedModel, support
from streaming.messages import Entry, Extent
from streaming.plan import place

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16"}
_SHAPE = {
    "vocab_size": 131,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
# transformers' defaults are of the large models' size, or switch a part of the family off.
_FAMILY_SHAPES = {
    "mistral": {"sliding_window": None},
    "qwen3": {"head_dim": 16},
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"head_dim": 16, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40},
}


def _rope(kind: str, **values) -> dict:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0} | values}


def longrope(original_max_position_embeddings: int, pairs: int = 8, **values) -> dict:
    """A Phi-3 whose context was stretched, with factors for so many pairs of channels."""
    short, long = ([start + 0.25 * pair for pair in range(pairs)] for start in (1.0, 2.0))
    factors = {"short_factor": short, "long_factor": long}
    return {
        "original_max_position_embeddings": original_max_position_embeddings,
        **_rope("longrope", **factors | values),
    }


_LLAMA3_ROPE = _rope(
    "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
)
_YARN = {"factor": 4.0, "original_max_position_embeddings": 64}

LLAMA_VARIANTS = {
    "gqa, tied": ("llama", {"tie_word_embeddings": True}),
    "mha, untied": ("llama", {"num_key_value_heads": 4}),
    "mqa": ("llama", {"num_key_value_heads": 1}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3 rope": ("llama", _LLAMA3_ROPE),
    "linear rope": ("llama", _rope("linear", factor=4.0)),
    "yarn": ("llama", _rope("yarn", **_YARN)),
    "wide heads": ("llama", {"head_dim": 24}),
}
VARIANTS = LLAMA_VARIANTS | {
    "mistral": ("mistral", {}),
    "mistral, window": ("mistral", {"sliding_window": 5}),
    "mistral, wide heads": ("mistral", {"sliding_window": 16, "head_dim": 24}),
    "qwen2": ("qwen2", {}),
    "qwen2, tied, yarn": ("qwen2", {"tie_word_embeddings": True, **_rope("yarn", **_YARN)}),
    "qwen2, window in later layers": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen2, layer types": (
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "qwen3": ("qwen3", {}),
    "qwen3, biases, wide heads": ("qwen3", {"attention_bias": True, "head_dim": 24, "tie_word_embeddings": True}),
    "qwen3, yarn": (
        "qwen3",
        _rope("yarn", **_YARN, beta_fast=16.0, beta_slow=2.0, attention_factor=1.3, truncate=False),
    ),
    "qwen3, yarn, mscale": ("qwen3", _rope("yarn", **_YARN, mscale=0.7, mscale_all_dim=0.4)),
    "phi3": ("phi3", {}),
    "phi3, part of a head, window": (
        "phi3",
        {"sliding_window": 7, **_rope("default", partial_rotary_factor=0.75), "resid_pdrop": 0.1, "embd_pdrop": 0.1},
    ),
    "phi3, short longrope": ("phi3", {**longrope(64), "max_position_embeddings": 64}),
    "phi3, part of a head, longrope": (
        "phi3",
        {**longrope(64, 6, partial_rotary_factor=0.75), "max_position_embeddings": 64, "tie_word_embeddings": True},
    ),
    "mixtral": ("mixtral", {}),
    "mixtral, window, many experts": (
        "mixtral",
        {"sliding_window": 6, "num_local_experts": 9, "num_experts_per_tok": 3},
    ),
    "qwen3 moe, normalised": ("qwen3_moe", {"norm_topk_prob": True}),
    "qwen3 moe, as it is": ("qwen3_moe", {"norm_topk_prob": False, "num_experts_per_tok": 3, "attention_bias": True}),
    "qwen3 moe, dense layers": ("qwen3_moe", {"norm_topk_prob": True, "decoder_sparse_step": 2, "head_dim": 24}),
    "qwen3 moe, a dense layer by name": ("qwen3_moe", {"norm_topk_prob": True, "mlp_only_layers": [1]}),
}


@dataclass(frozen=True)
class PackedModel:
    """A reference model, and what the engine is told of it."""

    reference: PreTrainedModel
    config_json: bytes
    extents: dict[str, Extent]
    arena: bytes
    transformers_dtype: str | None = None


@functools.cache
def packed_variant(name: str, dtype: torch.dtype = torch.float32) -> PackedModel:
    """One of `VARIANTS`; one copy for all who ask."""
    model_type, changes = VARIANTS[name]
    return packed_model(model_type, dtype, **changes)


def packed_model(model_type: str = "llama", dtype: torch.dtype = torch.float32, **changes) -> PackedModel:
    """A tiny model with random weights, biases and norms included."""
    shape = _SHAPE | _FAMILY_SHAPES.get(model_type, {}) | changes
    config = AutoConfig.for_model(model_type, **shape, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    torch.manual_seed(1)
    reference = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            parameter.normal_(mean=1.0 if "norm" in name else 0.0, std=0.2)
    reference.to(dtype)
    return pack(reference)


def pack(reference: PreTrainedModel) -> PackedModel:
    """`reference` as it is saved for the hub, laid out as `app.model_support` (or the engine) and `streaming.plan` decide."""
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        config_json = Path(folder, "config.json").read_bytes()
        with safe_open(Path(folder, "model.safetensors"), "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    entries = {
        name: Entry(name, _NAMES[tensor.dtype], tuple(tensor.shape), "model.safetensors", 0, 0)
        for name, tensor in tensors.items()
    }
    model = supported({"config.json": config_json}, list(entries.values()))
    layouts = {layout.stored_name: layout for layout in model.tensors}
    extents, nbytes = place(entries, layouts, model.groups)
    arena = bytearray(nbytes)
    for name, layout in layouts.items():
        at = extents[name].start
        arena[at : at + extents[name].nbytes] = (
            tensors[layout.source_name].reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return PackedModel(reference, config_json, extents, bytes(arena), model.transformers_dtype)


def supported(files: dict[str, bytes], entries: list[Entry]) -> SupportedModel:
    """A family's model, or transformers', as server and engine agree on it."""
    try:
        return support(files, entries)
    except NoFamily:
        from app.engine.transformers_description import describe

        request = description_request(files, entries)
        return described_support(files, entries, request, describe(request))
