"""The rival: transformers loads a local folder and generates one token. `python -m bench.from_pretrained DIR PROMPT`.

The shortest honest script: the class is named, so that no Auto class is imported, and the tokenizer is used
directly, as our server does.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any


def main(folder: str, prompt: str) -> None:
    """Print the token and the time (CLOCK_BOOTTIME, seconds) at which it was there."""
    import torch
    from tokenizers import Tokenizer
    from transformers.models.llama.modeling_llama import LlamaForCausalLM

    model: Any = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    ids = torch.tensor([Tokenizer.from_file(f"{folder}/tokenizer.json").encode(prompt).ids])
    with torch.inference_mode():
        token = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False)[
            0, -1
        ].item()
    print(token, time.clock_gettime(time.CLOCK_BOOTTIME), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
