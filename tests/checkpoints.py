"""Checkpoints of random tensors of every dtype, for tests of a whole load."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from streaming.digests import summarize
from streaming.manifest import MANIFEST_NAME, Manifest, encoded
from streaming.options import PipelineOptions
from streaming.upload_origin import checkpoint_files

SMALL = PipelineOptions(lanes=4, chunk_bytes=64 << 10)


def raw(tensor: torch.Tensor) -> bytes:
    """A tensor's bytes, of whatever dtype."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def random_shards(folder: Path, *, megabytes: int = 3) -> dict[str, torch.Tensor]:
    """Three shards of every dtype that torch and safetensors share, odd sizes and scalars among them."""
    generator = torch.Generator().manual_seed(0)
    dtypes = [
        torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64,
        torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64,
        torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
    ]  # fmt: skip
    tensors = {}
    for number, dtype in enumerate(dtypes):
        for shape in ((), (3, 5), (megabytes * 1024 * 1024 // len(dtypes) // dtype.itemsize,)):
            elements = int(np.prod(shape))
            data = torch.randint(0, 256, (elements * dtype.itemsize,), dtype=torch.uint8, generator=generator)
            data = data % 2 if dtype is torch.bool else data
            tensors[f"t{number}.{len(shape)}"] = data.view(dtype).reshape(shape)
    tensors["empty"] = torch.empty((0, 4))
    names = list(tensors)
    shards = {f"model-0000{part}.safetensors": {n: tensors[n] for n in names[part::3]} for part in range(3)}
    folder.mkdir(parents=True, exist_ok=True)
    for shard, content in shards.items():
        save_file(content, folder / shard)
    write_index(folder, {name: shard for shard, content in shards.items() for name in content})
    (folder / "config.json").write_text("{}")
    return {name: tensor for shard in shards for name, tensor in load_file(folder / shard).items()}


def write_index(folder: Path, weight_map: dict[str, str]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def write_manifest(folder: Path, block_bytes: int) -> None:
    """What a push would have left of this folder, in blocks of any size."""
    files = {path.name: summarize(path, block_bytes).digests for path in checkpoint_files(folder)}
    (folder / MANIFEST_NAME).write_bytes(encoded(Manifest(block_bytes=block_bytes, files=files)))
