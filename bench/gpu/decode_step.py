"""What a step takes beside what it must: `python -m bench.gpu.decode_step [--shape 8b] [--rows 1 8 32 64 128]`.

The engine's own decode step (inputs, model, sampler; a CUDA graph where it uses one) on random weights, launched before
the one before it was read where the engine does so, timed on the host from one step to the next, and beside it the least
it could take: its weights and the contexts' keys and values over the bandwidth of a copy on the same device, measured
here. Then steps of whole prompts. `--profile` lists the GPU's time by kernel. Ends with one JSON line.
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
from app.engine.sampling.sampler import PendingDraw
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
    add("--prompt-tokens", type=int, nargs="*", default=[])
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
    blocks_per_prompt = -(-max(arguments.prompt_tokens, default=0) // _BLOCK_SIZE_TOKENS)
    blocks = BlockAllocator(max(max(arguments.rows) * blocks_per_row, blocks_per_prompt))
    cache = KVCache(model.config, model.dtype, device, blocks.num_blocks, _BLOCK_SIZE_TOKENS)
    runner = ModelRunner(model, cache)
    if device.type == "cuda":
        rows = max(arguments.rows)
        tokens = max([rows, *arguments.prompt_tokens])
        runner.use_kernels(Limits(tokens, rows, max(tokens, blocks_per_row * _BLOCK_SIZE_TOKENS)))
    results = {}
    for rows in arguments.rows:
        steps_ms = _decode_ms(runner, blocks, rows, blocks_per_row, arguments)
        read_bytes = _weight_bytes(model) + rows * arguments.context_tokens * bytes_per_token(model.config, model.dtype)
        floor_ms = read_bytes / copied_gb_per_s / 1e6
        figures = [round(f(steps_ms), 3) for f in (statistics.median, min, max)]
        results[rows] = {"ms": figures, "floor_ms": round(floor_ms, 3), "times_floor": round(figures[0] / floor_ms, 2)}
        print(f"{rows} rows: {figures[0]} ms ({figures[1]} to {figures[2]}), {results[rows]['times_floor']}x the floor")
    prompts = {}
    for tokens in arguments.prompt_tokens:
        prompts[tokens] = _prompt_ms(runner, blocks, tokens)
        operations = tokens * _weight_bytes(model)  # two for each weight of two bytes
        rate = operations / prompts[tokens] / 1e9
        print(f"a prompt of {tokens} tokens: {prompts[tokens]} ms, {rate:.0f} TFLOP/s in its matrix products")
    summary = {"benchmark": "decode_step", "shape": arguments.shape, "device": _name(device)}
    print(json.dumps(summary | {"copy_gb_per_s": round(copied_gb_per_s, 1), "rows": results, "prompts_ms": prompts}))


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


def _decode_ms(
    runner: ModelRunner, blocks: BlockAllocator, rows: int, blocks_per_row: int, arguments: argparse.Namespace
) -> list[float]:
    """Milliseconds of each step of so many sequences, each a token longer than the one before."""
    sampling = SamplingParams(max_tokens=1 << 20, temperature=0.0)
    prompt = [7] * arguments.context_tokens
    sequences = [
        Sequence(str(row), sampling, 0, len(prompt), list(prompt), blocks.allocate(blocks_per_row, after=None))
        for row in range(rows)
    ]
    stepper = _Stepper(runner, sequences, looks_ahead=arguments.device == "cuda")
    took_ms = []
    for _ in range(_WARM_UP_STEPS + arguments.steps):
        start_s = time.perf_counter()
        stepper.step()
        took_ms.append((time.perf_counter() - start_s) * 1e3)
    if arguments.profile:
        print(_profile(stepper))
    stepper.finish()
    for sequence in sequences:
        blocks.free(sequence.block_ids)
    return took_ms[_WARM_UP_STEPS:]


class _Stepper:
    """Steps of the same sequences, in the order of the engine's loop."""

    def __init__(self, runner: ModelRunner, sequences: list[Sequence], *, looks_ahead: bool):
        self._runner = runner
        self._sequences = sequences
        self._looks_ahead = looks_ahead
        self._in_flight: PendingDraw | None = None

    def step(self) -> None:
        """Launch a step, read the one before."""
        spans = [Span(sequence, len(sequence.token_ids) - 1, len(sequence.token_ids)) for sequence in self._sequences]
        launched = self._runner.launch(spans)
        self.finish()
        for sequence in self._sequences:
            sequence.expect_token()
        self._in_flight = launched
        if not self._looks_ahead:
            self.finish()

    def finish(self) -> None:
        """Read what is in flight."""
        if self._in_flight is not None:
            for sequence, token in zip(self._sequences, self._in_flight.collect(), strict=True):
                if token is None:
                    raise RuntimeError("the logits are not finite")
                sequence.learn_token(token.token_id)
            self._in_flight = None


def _prompt_ms(runner: ModelRunner, blocks: BlockAllocator, tokens: int) -> float:
    """Milliseconds of a step that computes one whole prompt and draws a token, the median of five."""
    sampling = SamplingParams(max_tokens=1, temperature=0.0)
    block_ids = blocks.allocate(-(-tokens // _BLOCK_SIZE_TOKENS), after=None)
    took_ms = []
    for number in range(_WARM_UP_STEPS + 5):
        sequence = Sequence(str(number), sampling, 0, tokens, [7] * tokens, block_ids)
        start_s = time.perf_counter()
        runner.launch([Span(sequence, 0, tokens)]).collect()
        took_ms.append((time.perf_counter() - start_s) * 1e3)
    blocks.free(block_ids)
    return round(statistics.median(took_ms[_WARM_UP_STEPS:]), 2)


def _profile(stepper: _Stepper) -> str:
    with torch.profiler.profile() as profile:
        stepper.step()
        stepper.step()
    key = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    table: str = profile.key_averages().table(sort_by=key, row_limit=14, max_name_column_width=60)
    return table


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


if __name__ == "__main__":
    main()
