"""A step's spans one after the other, as plain numbers: what every way of computing it begins with. Knows no tensor."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from app.engine.kv_cache import KVCache
from app.engine.last_draw import LastDraw
from app.engine.scheduler import Span


@dataclass
class FlatStep:
    """One number per token; `last_rows` are those after which a token is drawn.

    A token may be unknown; `sources` says which of the last draw it is (`app.engine.last_draw`).
    """

    token_ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    last_rows: list[int] = field(default_factory=list)


def flatten(spans: Seq[Span], cache: KVCache, last_draw: LastDraw) -> FlatStep:
    """The tokens of `spans`, in their order."""
    flat = FlatStep(sources=last_draw.sources(spans))
    for span in spans:
        flat.token_ids += span.sequence.token_ids[span.start : span.end]
        flat.positions += range(span.start, span.end)
        flat.slots += cache.slots(span.sequence.block_ids, span.start, span.end)
        if span.samples:
            flat.last_rows.append(len(flat.token_ids) - 1)
    return flat
