"""The largest values of a row and where they are, in an order that does not depend on who else asks.

torch.topk leaves open which of equal values it takes, and equal logits are common in bfloat16.
"""

from __future__ import annotations

import torch

# Beyond this share of the vocabulary one sort is cheaper.
_MAX_TOP_SHARE = 1 / 8


def top_ranked(values: torch.Tensor, count: int) -> torch.Tensor:
    """Token ids (rows, count) of the largest of float32 values (rows, vocabulary), best first.

    Among equal values the lowest id goes first, as in argmax.
    """
    vocabulary = values.shape[-1]
    if count > vocabulary * _MAX_TOP_SHARE:
        return torch.sort(values, dim=-1, descending=True, stable=True)[1][:, :count]
    bits = (values + 0.0).view(torch.int32)  # + 0.0 makes -0.0 the 0.0 that it equals
    # The bits of a float32, but for a negative one's order, sort as the number does; the id breaks ties.
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    keys = ordered.long().mul_(vocabulary).sub_(torch.arange(vocabulary, device=values.device))
    return keys.topk(count, dim=-1)[1]
