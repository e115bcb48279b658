"""Checkpoints made for tests: safetensors bytes by hand, so that they can be wrong in any way."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

from streaming.checkpoint import LENGTH_BYTES, header_end, parse_header
from streaming.dtypes import BITS
from streaming.messages import Entry

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]


def shard_bytes(tensors: Tensors) -> bytes:
    """A valid safetensors file of (dtype, shape, data) by name."""
    header, data = {}, b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    return with_header(header, data)


def with_header(header: object, data: bytes) -> bytes:
    """A safetensors file with exactly this header, right or wrong."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def parse(shard: str, content: bytes) -> tuple[Entry, ...]:
    """The entries of a shard, as the loader reads them."""
    end = header_end(shard, content, len(content))
    return parse_header(shard, content[LENGTH_BYTES:end], len(content))


def data_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of whole-byte dtype."""
    return BITS[dtype] // 8 * math.prod(shape)


def write_checkpoint(folder: Path, shards: dict[str, Tensors]) -> None:
    """An indexed checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard, tensors in shards.items():
        (folder / shard).write_bytes(shard_bytes(tensors))
    weight_map = {name: shard for shard, tensors in shards.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
