"""The one forward pass that ends every rival's cold start. Takes a model of transformers, gives a token id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def prompt_of(checkpoint: str) -> list[int]:
    """The prompt that was planted in a checkpoint (`tools.random_checkpoint`, which would cost an import here)."""
    ids: list[int] = json.loads((Path(checkpoint) / "planted.json").read_text())["prompt_token_ids"]
    return ids


def first_token(model: Any, prompt: list[int], device: str) -> int:
    """The greedy token after `prompt`; the head is computed for the last position alone."""
    import torch

    with torch.inference_mode():
        logits = model(torch.tensor([prompt], device=device), logits_to_keep=1).logits
        return int(logits[0, -1].argmax().item())
