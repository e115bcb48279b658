"""What a decode step takes beside what it must: `python -m bench.gpu.decode_step [--shape 8b] [--rows 1 8 32 64 128]`.

The engine's own step (batch, model, sampler; a CUDA graph where it uses one) on random weights, timed on the host from
one step's start to the next, and beside it the least it could take: its weights and the contexts' keys and values over
the bandwidth of a copy on the same device, measured here. `--profile` lists the GPU's time by kernel. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from typing import Any

import torch

from app.engine.blocks import BlockAllocator
from app.engine.kv_cache import KVCache, bytes_per_token
from app.engine.model_runner import ModelRunner
from app.engine.models.decoder import Decoder
from app.engine.scheduler import Span
from app.engine.sequence import Sequence
from app.engine.step_shapes import Limits
from app.families.registry import decoder_config
from app.messages import SamplingParams
from tools.random_checkpoint import config_of

_BLOCK_SIZE_TOKENS = 16
_COPY_BYTES = {"cuda": 4 << 30, "cpu": 256 << 20}
_WARM_UP_STEPS = 3


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--shape", default="8b")
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--rows", type=int, nargs="+", default=[1, 8, 32, 64, 128])
    add("--context-tokens", type=int, default=640)
    add("--steps", type=int, default=30)
    add("--profile", action="store_true")
    return parser.parse_args(arguments)


def main() -> None:
    """Measure every batch size."""
    arguments = parse_arguments(sys.argv[1:])
    device = torch.device(arguments.device)
    copied_gb_per_s = _copy_gb_per_s(device)
    model = _random_model(arguments.shape, device)
    blocks_per_row = -(-(arguments.context_tokens + arguments.steps + _WARM_UP_STEPS) // _BLOCK_SIZE_TOKENS)
    blocks = BlockAllocator(max(arguments.rows) * blocks_per_row)
    cache = KVCache(model.config, model.dtype, device, blocks.num_blocks, _BLOCK_SIZE_TOKENS)
    runner = ModelRunner(model, cache)
    if device.type == "cuda":
        rows = max(arguments.rows)
        runner.use_kernels(Limits(rows, rows, blocks_per_row * _BLOCK_SIZE_TOKENS))
    results = {}
    for rows in arguments.rows:
        steps_ms = _steps_ms(runner, blocks, rows, blocks_per_row, arguments)
        read_bytes = _weight_bytes(model) + rows * arguments.context_tokens * bytes_per_token(model.config, model.dtype)
        floor_ms = read_bytes / copied_gb_per_s / 1e6
        figures = [round(f(steps_ms), 3) for f in (statistics.median, min, max)]
        results[rows] = {"ms": figures, "floor_ms": round(floor_ms, 3), "times_floor": round(figures[0] / floor_ms, 2)}
        print(f"{rows} rows: {figures[0]} ms ({figures[1]} to {figures[2]}), {results[rows]['times_floor']}x the floor")
    summary = {"benchmark": "decode_step", "shape": arguments.shape, "device": _name(device)}
    print(json.dumps(summary | {"copy_gb_per_s": round(copied_gb_per_s, 1), "rows": results}))


def _random_model(shape: str, device: torch.device) -> Decoder:
    config = decoder_config(config_of(shape))
    model = Decoder(config, torch.bfloat16, device, config.max_position_embeddings)
    weights = {
        name: torch.empty(parameter.shape, dtype=torch.bfloat16, device=device).normal_(0, 0.02)
        for name, parameter in model.state_dict().items()
    }
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_(requires_grad=False)


def _weight_bytes(model: Decoder) -> int:
    """What every step reads: not the embedding, of which it takes a row per token."""
    return sum(parameter.nbytes for name, parameter in model.named_parameters() if "embed_tokens" not in name)


def _copy_gb_per_s(device: torch.device) -> float:
    """Bytes read and written by a copy within the device's memory, per second."""
    source = torch.empty(_COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = min(_seconds(lambda: target.copy_(source), device) for _ in range(6))
    return 2 * source.nbytes / seconds / 1e9


def _seconds(work: Any, device: torch.device) -> float:
    _wait(device)
    start_s = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start_s


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _steps_ms(
    runner: ModelRunner, blocks: BlockAllocator, rows: int, blocks_per_row: int, arguments: argparse.Namespace
) -> list[float]:
    """Milliseconds of each step of so many sequences, each a token longer than the one before."""
    sampling = SamplingParams(max_tokens=1 << 20, temperature=0.0)
    prompt = [7] * arguments.context_tokens
    sequences = [
        Sequence(str(row), sampling, 0, len(prompt), list(prompt), blocks.allocate(blocks_per_row, after=None))
        for row in range(rows)
    ]
    took_ms = []
    for step in range(_WARM_UP_STEPS + arguments.steps):
        if arguments.profile and step == _WARM_UP_STEPS + arguments.steps - 1:
            print(_profile(runner, sequences))
        start_s = time.perf_counter()
        _step(runner, sequences)
        took_ms.append((time.perf_counter() - start_s) * 1e3)
    for sequence in sequences:
        blocks.free(sequence.block_ids)
    return took_ms[_WARM_UP_STEPS:]


def _step(runner: ModelRunner, sequences: list[Sequence]) -> None:
    spans = [Span(sequence, len(sequence.token_ids) - 1, len(sequence.token_ids)) for sequence in sequences]
    for sequence, token in zip(sequences, runner.launch(spans).collect(), strict=True):
        if token is None:
            raise RuntimeError("the logits are not finite")
        sequence.token_ids.append(token.token_id)


def _profile(runner: ModelRunner, sequences: list[Sequence]) -> str:
    with torch.profiler.profile() as profile:
        _step(runner, sequences)
    key = "self_cuda_time_total" if sequences and torch.cuda.is_available() else "self_cpu_time_total"
    table: str = profile.key_averages().table(sort_by=key, row_limit=14, max_name_column_width=60)
    return table


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


if __name__ == "__main__":
    main()
