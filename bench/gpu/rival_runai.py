"""Run:ai's Model Streamer into transformers: `python -m bench.gpu.rival_runai DIR URI DEVICE`.

The weights come from URI (`az://...`), config and prompt from the local DIR. The model is made on the meta
device and takes the streamed tensors as they are, so that nothing is initialised or copied twice.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bench.gpu.marks import Marks


def main(checkpoint: str, uri: str, device: str) -> None:
    """From imports to the first token."""
    marks = Marks()
    import torch

    marks.phase("import torch")
    import transformers.models.llama.modeling_llama  # noqa: F401

    marks.phase("import transformers")
    from runai_model_streamer import SafetensorsStreamer

    from bench.gpu.first_token import first_token, prompt_of
    from tools.meta_llama import bind, empty_llama

    marks.phase("import streamer")
    model = empty_llama(Path(checkpoint) / "config.json")
    torch.empty(1, device=device)
    marks.phase("model, device")
    shards = sorted(path.name for path in Path(checkpoint).glob("*.safetensors"))
    with SafetensorsStreamer() as streamer:
        streamer.stream_files([f"{uri}/{shard}" for shard in shards], device=device)
        tensors = dict(streamer.get_tensors())
    marks.phase("load")
    bind(model, tensors, device)
    marks.phase("bind")
    token_id = first_token(model, prompt_of(checkpoint), device)
    marks.phase("first token")
    marks.done(token_id)


if __name__ == "__main__":
    main(*sys.argv[1:])
