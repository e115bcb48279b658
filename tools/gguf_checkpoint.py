"""A llama GGUF file -> a checkpoint folder as transformers and every server of its format read it.

Takes the path of a quantised GGUF file; gives bfloat16 safetensors shards with their index, the configs
and the tokenizer. Knows no network and no cache (`tools.demo_model`), and no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from safetensors import TensorSpec, serialize_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL_TOKEN = 3

FloatArray = npt.NDArray[np.float32]
Metadata = dict[str, Any]


def write_checkpoint(gguf_path: Path, folder: Path, *, shards: int) -> None:
    """Write everything a checkpoint folder has into `folder`, which exists and is empty.

    Raises:
        ValueError: The GGUF file is not of a byte-level llama.
    """
    reader = gguf.GGUFReader(gguf_path)
    metadata: Metadata = {name: field.contents() for name, field in reader.fields.items()}
    if metadata["general.architecture"] != "llama" or metadata["tokenizer.ggml.model"] != "gpt2":
        raise ValueError(f"{gguf_path.name}: not a llama with a byte-level tokenizer")
    _write_weights(dict(_tensors(reader, metadata)), folder, shards=shards)
    _write_json(folder / "config.json", _config(metadata))
    _write_json(folder / "generation_config.json", _special_token_ids(metadata))
    _tokenizer(metadata).save(str(folder / "tokenizer.json"))
    special = _special_tokens(metadata)
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(metadata, special))


def to_bfloat16_bits(values: FloatArray) -> npt.NDArray[np.uint16]:
    """The bfloat16 bit patterns of finite float32 values, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    half = 0x7FFF + ((bits >> 16) & 1)
    return ((bits + half) >> 16).astype(np.uint16)


def unpermute_rotary(weight: FloatArray, heads: int) -> FloatArray:
    """Undo GGUF's row order of a llama q or k projection.

    GGUF rotates neighbouring rows (0,1), (2,3)...; transformers rotates row i with row i + head_dim/2.

    Args:
        weight: (heads * head_dim, hidden), rows in GGUF's order.
        heads: Heads of this projection.
    """
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _tensors(reader: gguf.GGUFReader, metadata: Metadata) -> Iterator[tuple[str, FloatArray]]:
    heads = {
        "attn_q": metadata["llama.attention.head_count"],
        "attn_k": metadata["llama.attention.head_count_kv"],
    }
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        kind = tensor.name.split(".")[-2]
        if kind in heads:
            values = unpermute_rotary(values, heads[kind])
        yield _checkpoint_name(tensor.name), values


def _checkpoint_name(name: str) -> str:
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    _, layer, kind, suffix = name.split(".")
    return f"model.layers.{layer}.{_BLOCK_NAMES[kind]}.{suffix}"


def _write_weights(tensors: dict[str, FloatArray], folder: Path, *, shards: int) -> None:
    bits = {name: to_bfloat16_bits(values) for name, values in tensors.items()}
    total_bytes = sum(array.nbytes for array in bits.values())
    weight_map: dict[str, str] = {}
    taken_bytes = 0
    for name, array in bits.items():
        shard = min(taken_bytes * shards // total_bytes, shards - 1) + 1
        weight_map[name] = f"model-{shard:05d}-of-{shards:05d}.safetensors"
        taken_bytes += array.nbytes
    for file_name in sorted(set(weight_map.values())):
        members = {name: array for name, array in bits.items() if weight_map[name] == file_name}
        _write_shard(folder / file_name, members)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)


def _write_shard(path: Path, tensors: dict[str, npt.NDArray[np.uint16]]) -> None:
    specs = {
        name: TensorSpec(dtype="bfloat16", shape=list(array.shape), data_ptr=array.ctypes.data, data_len=array.nbytes)
        for name, array in tensors.items()
    }
    serialize_file(specs, path, metadata={"format": "pt"})
    path.chmod(0o644)  # serialize_file leaves it to its owner alone


def _config(metadata: Metadata) -> Metadata:
    hidden = metadata["llama.embedding_length"]
    heads = metadata["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": metadata["llama.vocab_size"],
        "hidden_size": hidden,
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "max_position_embeddings": metadata["llama.context_length"],
        # GGUF keeps a float32: 9.999999747378752e-06 was 1e-05.
        "rms_norm_eps": float(f"{metadata['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": metadata["llama.rope.freq_base"],
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        **_special_token_ids(metadata),
    }


def _special_token_ids(metadata: Metadata) -> Metadata:
    return {
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
    }


def _special_tokens(metadata: Metadata) -> dict[str, str]:
    tokens = metadata["tokenizer.ggml.tokens"]
    roles = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    return {f"{role}_token": tokens[metadata[f"tokenizer.ggml.{name}_token_id"]] for name, role in roles.items()}


def _tokenizer(metadata: Metadata) -> Tokenizer:
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [(left, right) for left, right in (merge.split(" ") for merge in metadata["tokenizer.ggml.merges"])]
    tokenizer = Tokenizer(models.BPE({token: token_id for token_id, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    return tokenizer


def _tokenizer_config(metadata: Metadata, special: dict[str, str]) -> Metadata:
    return {
        # Not a class of its own: AutoTokenizer then takes tokenizer.json as it is.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": metadata["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
        "chat_template": metadata["tokenizer.chat_template"],
        **special,
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
