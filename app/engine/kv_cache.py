"""The paged KV cache: how large it is, and the tensors that hold it.

Takes shapes and budgets in bytes, gives storage on the CPU or a GPU. Which block belongs to whom is `blocks`' business.
"""

from __future__ import annotations

import math
import mmap

import torch

from app.engine.models.shape import ModelShape
from app.messages import EngineOptions
from streaming.errors import DeviceError
from streaming.host_memory import available_bytes

DEFAULT_CACHE_BYTES = 1 << 30
_WORKSPACE_BYTES = 512 << 20
_GRAPHS_BYTES = 1 << 30  # 0.7 GB for an 8B model


class KVCache:
    """Keys and values of every layer, each (slots, kv_heads, head_dim); a block is a run of slots.

    `scratch_slot` belongs to no block: rows that only pad a step write there. A host's memory is zeroed lazily by
    the kernel, so that blocks that are never used cost nothing; a GPU's holds anything, which nobody reads before
    it was written.
    """

    def __init__(
        self, config: ModelShape, dtype: torch.dtype, device: torch.device, num_blocks: int, block_size_tokens: int
    ):
        self.device = device
        self.block_size_tokens = block_size_tokens
        self.scratch_slot = num_blocks * block_size_tokens
        shape = (config.num_layers, 2, self.scratch_slot + 1, config.num_kv_heads, config.head_dim)
        is_host = device.type == "cpu"
        storage = _host_storage(shape, dtype) if is_host else torch.empty(shape, dtype=dtype, device=device)
        self.layers = tuple((keys, values) for keys, values in storage)

    def slots(self, block_ids: list[int], start: int, end: int) -> list[int]:
        """Where the tokens `[start, end)` of a sequence with these blocks lie."""
        size = self.block_size_tokens
        first = start // size
        blocks = block_ids[first : -(-end // size)]
        slots = [slot for block in blocks for slot in range(block * size, block * size + size)]
        return slots[start - first * size : end - first * size]


def _host_storage(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    # Not torch.zeros: that writes every byte (0.3 s for 1 GiB), a fresh mapping is zero until it is touched.
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def bytes_per_token(config: ModelShape, dtype: torch.dtype) -> int:
    """What one cached token costs over all layers."""
    return config.kv_elements_per_token * dtype.itemsize


def free_for_cache_bytes(config: ModelShape, options: EngineOptions, device: torch.device, coming_bytes: int) -> int:
    """What the cache may have at most.

    On a GPU, whose arena and context have their memory already: `gpu_memory_utilization` of the whole, less what
    is taken and what a step computes with. On a CPU: what is available, less the `coming_bytes` of weights, looked at
    before: what lands between the two is then counted as missing twice, never as free.
    """
    if device.type != "cuda":
        return max(0, available_bytes() - coming_bytes)
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    taken_bytes = total_bytes - free_bytes
    return max(0, int(total_bytes * options.gpu_memory_utilization) - taken_bytes - _step_bytes(config, options))


def _step_bytes(config: ModelShape, options: EngineOptions) -> int:
    """What the activations of the largest step, its logits, CUDA graphs and the libraries' workspaces need, roughly."""
    per_token = 4 * (6 * config.hidden_size + 3 * config.intermediate_size)
    # A row that keeps its whole vocabulary is ranked: values, weights, order and sums, some of them twice.
    logits = 48 * options.max_num_seqs * config.vocab_size
    return _WORKSPACE_BYTES + _GRAPHS_BYTES + options.max_num_batched_tokens * per_token + logits


def cache_blocks(
    options: EngineOptions, max_model_len_tokens: int, token_bytes: int, free_bytes: int, *, whole: bool
) -> int:
    """How many blocks the cache gets: enough for `max_num_seqs` full sequences, within a budget.

    The budget is `options.kv_cache_bytes` where it is set; with `whole`, everything that is free (a GPU's memory
    is for this); otherwise 1 GiB, or a quarter of what is free where one full sequence needs that.

    Raises:
        DeviceError: The budget is more than there is, or not even one block fits it.
    """
    block_bytes = token_bytes * options.block_size_tokens
    blocks_per_sequence = -(-max_model_len_tokens // options.block_size_tokens)
    budget_bytes = options.kv_cache_bytes
    if budget_bytes is not None and budget_bytes > free_bytes:
        raise DeviceError(
            f"the KV cache is to have {budget_bytes} bytes, {free_bytes} are available: lower --kv-cache-memory-bytes"
        )
    if budget_bytes is None:
        one_sequence_bytes = min(blocks_per_sequence * block_bytes, free_bytes // 4)
        budget_bytes = free_bytes if whole else max(DEFAULT_CACHE_BYTES, one_sequence_bytes)
    blocks = min(options.max_num_seqs * blocks_per_sequence, budget_bytes // block_bytes)
    if blocks < 1:
        raise DeviceError(
            f"the KV cache has {budget_bytes} bytes but one block needs {block_bytes}: "
            "raise --kv-cache-memory-bytes or --gpu-memory-utilization"
        )
    return blocks
