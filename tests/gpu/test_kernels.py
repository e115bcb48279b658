"""The kernels compiled for this GPU, at the sizes of real models, against float64."""

from __future__ import annotations

import pytest
import torch

from tests.kernel_oracle import Heads, decode_error, gate_error, norm_error, prefill_error, rotation_error

pytestmark = pytest.mark.gpu

BF16 = torch.bfloat16
LARGE = Heads(heads=32, kv_heads=8, head_dim=128)


@pytest.mark.parametrize(
    ("lengths", "window", "softcap"),
    [([8000], 0, 0.0), ([2000, 1, 700] * 21, 0, 0.0), ([700] * 130, 256, 0.0), ([300, 90], 0, 30.0)],
)
def test_decode_attention(lengths, window, softcap):
    """One row over a long context, and many rows."""
    assert decode_error(LARGE, lengths, BF16, "cuda", window, softcap) < 2e-2


@pytest.mark.parametrize(("lengths", "queries", "window"), [([2000, 700, 1], [512, 700, 1], 0), ([3000], [1500], 1000)])
def test_prefill_attention(lengths, queries, window):
    """Pieces of long prompts."""
    assert prefill_error(LARGE, lengths, queries, BF16, "cuda", window) < 2e-2


@pytest.mark.parametrize("has_norms", [False, True])
def test_rotation(has_norms):
    """In bfloat16 the kernel rounds once where torch rounds three times."""
    assert rotation_error(LARGE, 64, 128, BF16, "cuda", has_norms=has_norms) < 6e-2


def test_norm_and_gate():
    """The norm rounds as torch does; the gate as well."""
    assert norm_error(64, 4096, BF16, "cuda") < 6e-2
    assert gate_error(64, 14336, BF16, "cuda") < 6e-2
