"""The GPU's kernels, run by Triton's interpreter on the CPU (`conftest.py` asks for it); `tests/gpu` runs them on a GPU."""

from __future__ import annotations

import pytest
import torch

from tests.kernel_oracle import (
    Heads,
    decode_error,
    gate_error,
    norm_error,
    prefill_error,
    rotation_error,
)

F32 = torch.float32
TOLERANCE = 5e-6


@pytest.mark.parametrize(
    ("heads", "lengths", "window", "softcap"),
    [
        (Heads(), [200, 1, 64], 0, 0.0),
        (Heads(heads=4, kv_heads=4, head_dim=80), [70], 0, 0.0),
        (Heads(heads=12, kv_heads=2, head_dim=32, block_size_tokens=32), [300, 90], 100, 0.0),
        (Heads(kv_heads=1), [150, 17], 0, 20.0),
    ],
)
def test_a_query_attends_to_its_own_blocks_alone(heads, lengths, window, softcap):
    """Scattered blocks, shared key heads, a window, capped scores; beyond a row's length lie NaN."""
    assert decode_error(heads, lengths, F32, "cpu", window, softcap) < TOLERANCE


@pytest.mark.parametrize(
    ("heads", "lengths", "queries", "window", "softcap"),
    [
        (Heads(), [70, 33, 130], [70, 1, 65], 0, 0.0),
        (Heads(heads=4, kv_heads=4, head_dim=80), [200], [150], 60, 0.0),
        (Heads(kv_heads=1, head_dim=32), [90, 20], [40, 20], 0, 15.0),
    ],
)
def test_pieces_of_prompts_attend_to_what_came_before_them(heads, lengths, queries, window, softcap):
    """Whole prompts, later pieces and single tokens in one call."""
    assert prefill_error(heads, lengths, queries, F32, "cpu", window, softcap) < TOLERANCE


@pytest.mark.parametrize(("head_dim", "rotated", "has_norms"), [(64, 64, False), (96, 24, False), (64, 64, True)])
def test_heads_are_rotated_and_stored_in_one_pass(head_dim, rotated, has_norms):
    """All channels or some, with norms of the heads or without."""
    assert rotation_error(Heads(head_dim=head_dim), 3, rotated, F32, "cpu", has_norms=has_norms) < TOLERANCE


def test_the_sum_is_kept_and_its_norm_is_given():
    """`hidden` becomes the sum; a width that is no power of two."""
    assert norm_error(3, 100, F32, "cpu") < TOLERANCE


def test_the_gate_multiplies():
    """More channels than one program takes."""
    assert gate_error(2, 1500, F32, "cpu") < TOLERANCE
