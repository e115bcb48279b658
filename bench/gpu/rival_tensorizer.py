"""CoreWeave's tensorizer into transformers: `python -m bench.gpu.rival_tensorizer DIR URL DEVICE READERS`.

URL is a file in its own format (`bench.gpu.serialize_tensorizer`); config and prompt come from the local DIR.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bench.gpu.marks import Marks


def main(checkpoint: str, url: str, device: str, readers: str) -> None:
    """From imports to the first token."""
    marks = Marks()
    import torch

    marks.phase("import torch")
    import transformers.models.llama.modeling_llama  # noqa: F401

    marks.phase("import transformers")
    from tensorizer import TensorDeserializer

    from bench.gpu.first_token import first_token, prompt_of
    from tools.meta_llama import empty_llama

    marks.phase("import tensorizer")
    model = empty_llama(Path(checkpoint) / "config.json")
    torch.empty(1, device=device)
    marks.phase("model, device")
    # Rope's frequencies are in the file, too: it holds a module, not a checkpoint.
    with TensorDeserializer(url, device=device, num_readers=int(readers)) as deserializer:
        deserializer.load_into_module(model)
    model.eval()
    marks.phase("load")
    token_id = first_token(model, prompt_of(checkpoint), device)
    marks.phase("first token")
    marks.done(token_id)


if __name__ == "__main__":
    main(*sys.argv[1:])
