"""The paged KV cache: how large it is, and the tensors that hold it.

Takes shapes and budgets in bytes, gives storage. Which block belongs to whom is `blocks`' business.
"""

from __future__ import annotations

import math
import mmap

import torch

from app.engine.models.config import DecoderConfig
from app.messages import EngineOptions
from streaming.errors import DeviceError

DEFAULT_CACHE_BYTES = 1 << 30


class KVCache:
    """Keys and values of every layer, each (slots, kv_heads, head_dim); a block is a run of slots.

    The memory is zeroed lazily by the kernel, so blocks that are never used cost nothing.
    """

    def __init__(self, config: DecoderConfig, dtype: torch.dtype, slots: int):
        shape = (config.num_layers, 2, slots, config.num_kv_heads, config.head_dim)
        # Not torch.zeros: that writes every byte (0.3 s for 1 GiB), a fresh mapping is zero until it is touched.
        memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
        storage = torch.frombuffer(memory, dtype=dtype).view(shape)
        self.layers = tuple((keys, values) for keys, values in storage)


def bytes_per_token(config: DecoderConfig, dtype: torch.dtype) -> int:
    """What one cached token costs over all layers."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize


def cache_blocks(options: EngineOptions, max_model_len_tokens: int, token_bytes: int, available_bytes: int) -> int:
    """How many blocks the cache gets.

    `options.kv_cache_bytes` where it is set. Otherwise enough for `max_num_seqs` full sequences, but at most
    1 GiB, or a quarter of the available memory where that is what one full sequence needs.

    Raises:
        DeviceError: The budget is more than there is, or not even one block fits it.
    """
    block_bytes = token_bytes * options.block_size_tokens
    blocks_per_sequence = -(-max_model_len_tokens // options.block_size_tokens)
    budget_bytes = options.kv_cache_bytes
    if budget_bytes is not None and budget_bytes > available_bytes:
        raise DeviceError(
            f"the KV cache is to have {budget_bytes} bytes, {available_bytes} are available: "
            "lower --kv-cache-memory-bytes"
        )
    if budget_bytes is None:
        one_sequence_bytes = min(blocks_per_sequence * block_bytes, available_bytes // 4)
        budget_bytes = max(DEFAULT_CACHE_BYTES, one_sequence_bytes)
    blocks = min(options.max_num_seqs * blocks_per_sequence, budget_bytes // block_bytes)
    if blocks < 1:
        raise DeviceError(
            f"the KV cache has {budget_bytes} bytes but one block needs {block_bytes}: raise kv_cache_bytes"
        )
    return blocks
