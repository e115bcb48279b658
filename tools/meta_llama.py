"""Transformers' own Llama without a byte of weights, and how tensors become its parameters.

Takes a config.json and named tensors, gives a model. Knows no source of tensors: generators and loaders
that hand them over share this. Importing it is free; calling it imports torch and transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def empty_llama(config_path: Path) -> Any:
    """A bfloat16 `LlamaForCausalLM` on the meta device, made the fastest way: the class named, nothing initialised."""
    import torch
    from transformers.initialization import no_init_weights
    from transformers.models.llama.configuration_llama import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaForCausalLM

    with torch.device("meta"), no_init_weights():
        model: Any = LlamaForCausalLM(LlamaConfig(**json.loads(config_path.read_text())))
        return model.to(torch.bfloat16)


def bind(model: Any, tensors: Mapping[str, Any], device: str) -> None:
    """Make `tensors` the parameters, without a copy, and give the model what no checkpoint holds."""
    model.load_state_dict(tensors, assign=True, strict=True)
    finish(model, device)


def finish(model: Any, device: str) -> None:
    """Compute rope's frequencies on `device` (on the meta device they are nothing) and stop training."""
    import torch
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    with torch.device(device):
        model.model.rotary_emb = LlamaRotaryEmbedding(model.config)
    model.eval()
