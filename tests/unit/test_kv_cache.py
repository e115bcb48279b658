"""The blocks of the KV cache: who gets which, and how many there are."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.engine.blocks import BlockAllocator
from app.engine.kv_cache import DEFAULT_CACHE_BYTES, KVCache, bytes_per_token, cache_blocks
from app.engine.staged_weights import StagedWeights
from app.engine.weights import from_host
from app.families.registry import decoder_config
from app.messages import EngineOptions
from streaming.arena import HostArena
from streaming.errors import DeviceError

CONFIG = decoder_config(
    {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 10,
        "hidden_size": 32,
        "intermediate_size": 8,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
    }
)
MIB = 1 << 20


@given(st.integers(1, 40), st.data())
def test_blocks_are_given_once_and_come_back(num_blocks, data):
    """Whatever is taken and given back, a block is never given twice nor lost."""
    allocator = BlockAllocator(num_blocks)
    held: list[list[int]] = []
    for _ in range(data.draw(st.integers(0, 30))):
        if held and data.draw(st.booleans()):
            allocator.free(held.pop(data.draw(st.integers(0, len(held) - 1))))
        else:
            after = data.draw(st.none() | st.integers(0, num_blocks - 1))
            held.append(allocator.allocate(data.draw(st.integers(0, allocator.num_free)), after=after))
        taken = [block for blocks in held for block in blocks]
        assert len(taken) == len(set(taken))
        assert set(taken) <= set(range(num_blocks))
        assert allocator.num_free == num_blocks - len(taken)


def test_sequences_grow_in_a_row_side_by_side():
    """Two sequences that grow in turn keep each its own row of blocks."""
    allocator = BlockAllocator(16)
    first, second = allocator.allocate(1, after=None), allocator.allocate(1, after=None)
    for _ in range(7):
        first += allocator.allocate(1, after=first[-1])
        second += allocator.allocate(1, after=second[-1])
    assert [first, second] == [list(range(8)), list(range(8, 16))]


def test_more_than_is_free_and_a_double_free_are_errors():
    """The allocator refuses what it does not have, and what it has already."""
    allocator = BlockAllocator(2)
    blocks = allocator.allocate(2, after=None)
    with pytest.raises(ValueError, match="0 free"):
        allocator.allocate(1, after=None)
    allocator.free(blocks)
    with pytest.raises(ValueError, match="free already"):
        allocator.free(blocks)


def test_a_token_costs_keys_and_values_of_every_layer():
    """The size that the budget is divided by is the size of the storage."""
    cache = KVCache(CONFIG, torch.bfloat16, torch.device("cpu"), num_blocks=3, block_size_tokens=16)
    stored_bytes = sum(keys.nbytes + values.nbytes for keys, values in cache.layers)
    assert stored_bytes == (48 + 1) * bytes_per_token(CONFIG, torch.bfloat16)  # and the scratch slot


@pytest.mark.parametrize(
    ("options", "token_bytes", "available_bytes", "blocks"),
    [
        # Room for every sequence at full length, and no more than that.
        (EngineOptions(max_num_seqs=2), 100, 1 << 40, 2 * 7),
        # The default budget.
        (EngineOptions(), MIB, 1 << 30, DEFAULT_CACHE_BYTES // (16 * MIB)),
        # One full sequence is larger than the default budget: it gets up to a quarter of the memory.
        (EngineOptions(), 100 * MIB, 1 << 40, 7),
        (EngineOptions(), 100 * MIB, 4 * 5 * 1600 * MIB, 5),
        # What the user says, in whole blocks.
        (EngineOptions(kv_cache_bytes=10_000), 100, 1 << 40, 6),
    ],
)
def test_the_cache_gets_what_it_can_use_within_its_budget(options, token_bytes, available_bytes, blocks):
    """For sequences of 100 tokens (7 blocks): every sequence, or 1 GiB, or one sequence, or what is asked."""
    assert cache_blocks(options, 100, token_bytes, available_bytes, whole=False) == blocks


@pytest.mark.parametrize("landed_bytes", [0, MIB, 3 * MIB, 4 * MIB])
def test_weights_that_have_landed_are_not_subtracted_from_free_memory_again(landed_bytes):
    """Of an arena in host memory only what nobody has written is to come: the rest is missing already."""
    arena = HostArena.create(4 * MIB)
    weights = from_host(os.dup(arena.fd), 4 * MIB, None, pytest.fail)
    os.pwrite(arena.fd, bytes(landed_bytes), 0)
    os.close(arena.fd)
    assert weights.coming_bytes() == 4 * MIB - landed_bytes


def test_weights_from_the_disk_are_all_to_come():
    """Memory of the engine's own is taken as it is filled."""
    assert StagedWeights(4 * MIB, {}, "cpu").coming_bytes() == 4 * MIB


def test_a_budget_below_one_block_is_an_error():
    """A cache without a block could serve nothing."""
    with pytest.raises(DeviceError, match="raise --kv-cache-memory-bytes"):
        cache_blocks(EngineOptions(kv_cache_bytes=1_000), 100, 100, 1 << 40, whole=False)
