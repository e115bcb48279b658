"""What transformers generates per second without a server: `python -m bench.rival_generate MODEL IN OUT CONCURRENCY REQUESTS MODE`.

`generate` takes batches of CONCURRENCY prompts, one after the other; `generate_batch` is its continuous batching,
given all prompts at once. The prompts are those of `bench.load`. Prints one JSON line.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from bench.load import Shape, prompts_of


def main(folder: str, shape: Shape, concurrency: int, requests: int, mode: str) -> dict[str, Any]:
    """Load, warm up with one batch, measure."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", attn_implementation="sdpa")
    model.to(device).eval()
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        max_new_tokens=shape.output_tokens,
        min_new_tokens=shape.output_tokens,
        eos_token_id=-1,
        pad_token_id=0,
    )
    prompts = prompts_of(shape, requests)
    run = _continuously if mode == "generate_batch" else _in_batches
    run(model, prompts[:concurrency], concurrency, config)
    start_s = time.perf_counter()
    run(model, prompts, concurrency, config)
    seconds = time.perf_counter() - start_s
    return {"output_tokens_per_s": round(requests * shape.output_tokens / seconds, 1)}


@torch.inference_mode()
def _in_batches(model: Any, prompts: list[list[int]], concurrency: int, config: GenerationConfig) -> None:
    for first in range(0, len(prompts), concurrency):
        ids = torch.tensor(prompts[first : first + concurrency], device=model.device)
        answers = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        assert answers.shape[1] == ids.shape[1] + config.max_new_tokens


def _continuously(model: Any, prompts: list[list[int]], _concurrency: int, config: GenerationConfig) -> None:
    answers = model.generate_batch(inputs=prompts, generation_config=config)
    assert all(len(answer.generated_tokens) == config.max_new_tokens for answer in answers.values())


if __name__ == "__main__":
    folder, input_tokens, output_tokens, concurrency, requests, mode = sys.argv[1:]
    vocab_size = json.loads((Path(folder) / "config.json").read_text())["vocab_size"]
    shape = Shape(int(input_tokens), int(output_tokens), vocab_size)
    print(json.dumps(main(folder, shape, int(concurrency), int(requests), mode)))
