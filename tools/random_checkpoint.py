"""A random Llama checkpoint of a real size, with one token planted: `python -m tools.random_checkpoint DIR --shape 8b`.

Gives a complete Hugging Face folder (bfloat16 shards, index, configs, tokenizer) and `planted.json`: a prompt
of 16 token ids after which one token's logit leads by far more than any kernel's rounding. The lead hangs on
the last hidden state, so on every weight: a model that was landed wrongly answers something else. The shape
sparse60 is 60 GB of holes instead, which take no disk. Uses a GPU if there is one.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from app.families.family import TensorSpec
from app.families.registry import FAMILIES
from tools.random_tokenizer import write_tokenizer

PLANTED_FILE = "planted.json"
PROMPT_TOKEN_IDS = tuple(range(300, 316))
# What the planted logit becomes. The others are of the order of 6: bfloat16's rounding is of the order of 0.1.
_PLANTED_LOGIT = 30.0
_MIN_MARGIN = 10.0
_SEED = 20261122

_COMMON: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "bfloat16",
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def _shape(layers: int, hidden: int, inner: int, heads: int, kv_heads: int, vocab: int = 128256) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
    }


SPARSE = "sparse60"
SHAPES = {
    "8b": _shape(32, 4096, 14336, 32, 8),
    "1b": _shape(16, 2048, 8192, 32, 8),
    "small": _shape(4, 512, 1536, 8, 4, vocab=16384),
    "tiny": _shape(2, 64, 128, 4, 2, vocab=2048),
    SPARSE: _shape(80, 5632, 16896, 44, 4),
}


def config_of(shape: str) -> dict[str, Any]:
    """The config.json of a shape."""
    return _COMMON | SHAPES[shape]


def write_checkpoint(folder: Path, shape: str, *, shards: int = 4, device: str = "cpu") -> dict[str, Any]:
    """Write the whole folder; gives what `planted.json` holds, nothing for the sparse shape.

    Raises:
        RuntimeError: The planted token does not lead by a wide margin.
    """
    config = config_of(shape)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": 1}))
    write_tokenizer(folder, config["vocab_size"])
    parts = _split(FAMILIES["LlamaForCausalLM"].tensors(config), shards)
    _write_index(folder, parts)
    if shape == SPARSE:
        for name, specs in parts.items():
            _write_sparse_shard(folder / name, specs)
        return {}
    tensors = _random_tensors([spec for specs in parts.values() for spec in specs], device)
    planted = _plant(folder, tensors, device)
    _write_shards(folder, parts, tensors)
    (folder / PLANTED_FILE).write_text(json.dumps(planted))
    return planted


def _split(specs: Sequence[TensorSpec], shards: int) -> dict[str, list[TensorSpec]]:
    """Tensors by shard, in order, each shard of about the same size."""
    total = sum(_nbytes(spec) for spec in specs)
    parts: list[list[TensorSpec]] = [[] for _ in range(shards)]
    before = 0
    for spec in specs:
        middle = before + _nbytes(spec) // 2
        parts[middle * shards // total].append(spec)
        before += _nbytes(spec)
    return {f"model-{number + 1:05d}-of-{shards:05d}.safetensors": part for number, part in enumerate(parts)}


def _nbytes(spec: TensorSpec) -> int:
    return 2 * math.prod(spec.shape)


def _write_index(folder: Path, parts: dict[str, list[TensorSpec]]) -> None:
    total = sum(_nbytes(spec) for specs in parts.values() for spec in specs)
    weight_map = {spec.name: shard for shard, specs in parts.items() for spec in specs}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _write_sparse_shard(path: Path, specs: list[TensorSpec]) -> None:
    """A safetensors file whose header is there and whose data is one hole."""
    header: dict[str, Any] = {}
    end = 0
    for spec in specs:
        start, end = end, end + _nbytes(spec)
        header[spec.name] = {"dtype": "BF16", "shape": spec.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def _random_tensors(specs: Sequence[TensorSpec], device: str) -> dict[str, Any]:
    """Weights of the size that training starts with; norms about 1."""
    import torch

    generator = torch.Generator(device).manual_seed(_SEED)

    def tensor(spec: TensorSpec) -> torch.Tensor:
        noise = torch.randn(spec.shape, generator=generator, device=device, dtype=torch.bfloat16)
        return noise * 0.1 + 1 if len(spec.shape) == 1 else noise.mul_(0.02)

    return {spec.name: tensor(spec) for spec in specs}


def _plant(folder: Path, tensors: dict[str, Any], device: str) -> dict[str, Any]:
    """Turn one row of the head towards the prompt's last hidden state, then see what a whole forward pass says."""
    import torch

    from tools.meta_llama import bind, empty_llama

    model = empty_llama(folder / "config.json")
    bind(model, tensors, device)
    prompt = torch.tensor([PROMPT_TOKEN_IDS], device=device)
    with torch.inference_mode():
        hidden = model.model(prompt).last_hidden_state[0, -1].float()
        head = tensors["lm_head.weight"]
        token_id = head.shape[0] * 3 // 4
        head[token_id] = (hidden * (_PLANTED_LOGIT / hidden.square().sum())).to(head.dtype)
        best = model(prompt).logits[0, -1].float().topk(2)
    margin = (best.values[0] - best.values[1]).item()
    if best.indices[0].item() != token_id or not margin > _MIN_MARGIN:
        raise RuntimeError(f"token {token_id} leads by {margin:.2f}: the plant did not take")
    return {"prompt_token_ids": PROMPT_TOKEN_IDS, "token_id": token_id, "margin": round(margin, 2)}


def _write_shards(folder: Path, parts: dict[str, list[TensorSpec]], tensors: dict[str, Any]) -> None:
    """One thread per shard: both the copies from a GPU and the writes let others run."""
    from safetensors.torch import save_file

    def write(name: str) -> None:
        save_file({spec.name: tensors[spec.name].cpu() for spec in parts[name]}, folder / name, {"format": "pt"})

    with ThreadPoolExecutor(len(parts)) as pool:
        list(pool.map(write, parts))


def main() -> None:
    """Write the folder and say what was planted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="8b")
    parser.add_argument("--shards", type=int, default=4)
    arguments = parser.parse_args()
    start_s = time.monotonic()
    planted = write_checkpoint(arguments.folder, arguments.shape, shards=arguments.shards, device=_device())
    nbytes = sum(path.stat().st_size for path in arguments.folder.glob("*.safetensors"))
    print(f"{arguments.folder}: {nbytes / 1e9:.2f} GB in {time.monotonic() - start_s:.1f} s")
    if planted:
        print(f"planted token {planted['token_id']}, which leads by {planted['margin']}")


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    main()
