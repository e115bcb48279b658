"""The loader's peak resident memory, for two model sizes, with and without a cast. `python -m bench.loader_memory`.

The arena is not counted: the loader writes it through its descriptor and never maps it. Ends with one JSON
line.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from streaming.messages import Described, Layout, TensorLayout
from streaming.options import PipelineOptions
from tests.loader import ORIGIN, load
from tests.unit.checkpoints import Tensors, shard_bytes
from tools.blob_server import BlobServer

_MIB = 1 << 20
_SIZES_MIB = (256, 1024)


def peak_mib(size_mib: int, stored_dtype: str) -> float:
    """The peak of one load of a bfloat16 checkpoint of `size_mib` over HTTP, with the default lanes and chunks."""
    with tempfile.TemporaryDirectory() as folder:
        tensors: Tensors = {"a": ("BF16", (size_mib * _MIB // 2,), bytes(size_mib * _MIB))}
        (Path(folder) / "model.safetensors").write_bytes(shard_bytes(tensors))

        def layout(_: Described) -> Layout:
            return Layout(origin=ORIGIN, tensors=(TensorLayout("a", "a", stored_dtype),))

        with BlobServer(Path(folder)) as server:
            result = load(server.url, pipeline=PipelineOptions(), layout=layout)
    assert result.error is None
    return result.max_resident_bytes / _MIB


def main() -> None:
    """Measure, print, and end with the JSON line."""
    options = PipelineOptions()
    bound_mib = options.lanes * 2 * options.chunk_bytes / _MIB + 100
    rows = {
        f"{size_mib} MiB, stored as {dtype}": round(peak_mib(size_mib, dtype), 1)
        for dtype in ("BF16", "F32")
        for size_mib in _SIZES_MIB
    }
    for name, peak in rows.items():
        print(f"{name:32} peak {peak:7.1f} MiB (bound {bound_mib:.0f})")
    print(json.dumps({"benchmark": "loader_memory", "bound_mib": bound_mib, "peak_mib": rows}))


if __name__ == "__main__":
    main()
