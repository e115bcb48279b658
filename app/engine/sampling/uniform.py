"""Uniform numbers keyed by (seed, position), so that a draw depends on nothing else.

The position-th output of splitmix64, whose state begins at a hash of the seed. int64 wraps where splitmix64's unsigned
numbers do; only its right shifts need a mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

_GAMMA = 0x9E3779B97F4A7C15
_FIRST_FACTOR = 0xBF58476D1CE4E5B9
_SECOND_FACTOR = 0x94D049BB133111EB


def uniforms(seeds: Sequence[int], positions: Sequence[int], count: int) -> torch.Tensor:
    """Numbers in [0, 1), (seeds, count) float64 on the CPU: those of `count` positions from each seed's own on."""
    hashed = _mix(torch.tensor([_signed(seed) for seed in seeds]))
    steps = torch.tensor(positions)[:, None] + torch.arange(count)
    outputs = _mix(hashed[:, None] + steps * _signed(_GAMMA))
    return _shifted(outputs, 11).double() / (1 << 53)


def _mix(values: torch.Tensor) -> torch.Tensor:
    values = (values ^ _shifted(values, 30)) * _signed(_FIRST_FACTOR)
    values = (values ^ _shifted(values, 27)) * _signed(_SECOND_FACTOR)
    return values ^ _shifted(values, 31)


def _shifted(values: torch.Tensor, bits: int) -> torch.Tensor:
    """An unsigned right shift."""
    return (values >> bits) & ((1 << 64 - bits) - 1)


def _signed(value: int) -> int:
    """The int64 of an integer's lowest 64 bits."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)
