"""A checkpoint folder in tensorizer's own format, made once and not timed: `... DIR FILE DEVICE`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def main(checkpoint: str, path: str, device: str) -> None:
    """Load with transformers, write as tensorizer's documentation does; a file that is there is whole."""
    import torch
    from tensorizer import TensorSerializer
    from transformers.models.llama.modeling_llama import LlamaForCausalLM

    model: Any = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16, device_map={"": device})
    partial = Path(f"{path}.partial")
    serializer = TensorSerializer(str(partial))
    serializer.write_module(model)
    serializer.close()
    partial.rename(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
