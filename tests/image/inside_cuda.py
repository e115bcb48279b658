"""What the image for GPUs has compiled: run in a container of it without a GPU. Prints one JSON object.

`/stub` has an empty library of the name of CUDA's driver, `/models` the config.json that the image's kernels are for.
"""

import ctypes
import json
import os
import shutil
import sys
from pathlib import Path

import torch
from triton import knobs

from app.engine.kernel_cache import link_compiled
from app.engine.kernels_ahead import compile_kernels

compiled, cache = Path(os.environ["COLDSTREAM_KERNELS_DIR"]), Path(knobs.cache.dir)
linked = link_compiled(compiled, cache)
ctypes.CDLL("/stub/libcuda.so.1")
sys.setdlopenflags(os.RTLD_LAZY)
from triton.backends.nvidia.driver import CudaUtils  # noqa: E402 - it looks for the driver

CudaUtils()
for config in Path("/models").glob("*.json"):
    for capability in (80, 90):
        compile_kernels(config.read_bytes(), capability)
print(
    json.dumps(
        {
            "cuda": torch.version.cuda,
            "compilers": [name for name in ("gcc", "cc", "clang") if shutil.which(name)],
            "kernels": len(list(compiled.glob("*/*.cubin"))),
            "linked": linked,
            "compiled_here": [path.name for path in cache.iterdir() if not path.is_symlink()],
        }
    )
)
