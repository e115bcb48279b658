"""transformers from a local folder: `python -m bench.gpu.rival_from_pretrained DIR DEVICE`.

The shortest honest way: the class named, so that no Auto class is imported; bfloat16; straight to the device.
"""

from __future__ import annotations

import sys
from typing import Any, NoReturn

from bench.gpu.marks import Marks


def load_and_answer(marks: Marks, checkpoint: str, device: str) -> NoReturn:
    """From imports to the first token."""
    import torch

    marks.phase("import torch")
    from transformers.models.llama.modeling_llama import LlamaForCausalLM

    marks.phase("import transformers")
    from bench.gpu.first_token import first_token, prompt_of

    model: Any = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16, device_map={"": device})
    marks.phase("load")
    token_id = first_token(model, prompt_of(checkpoint), device)
    marks.phase("first token")
    marks.done(token_id)


if __name__ == "__main__":
    load_and_answer(Marks(), *sys.argv[1:])
