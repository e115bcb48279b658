"""Which blobs have to go so that there is room: the longest unused first. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Resident(NamedTuple):
    """One folder of the cache: when a load last used it (Unix time), and the bytes that it takes on disk."""

    used_s: float
    name: str
    nbytes: int


def wanted_bytes(nbytes: int, used_bytes: int, max_bytes: int, free_bytes: int, reserve_bytes: int) -> int:
    """How much has to go before `nbytes` more may be written; 0 where there is room."""
    return max(0, used_bytes + nbytes - max_bytes, nbytes + reserve_bytes - free_bytes)


def victims(idle: Iterable[Resident], wanted: int) -> list[Resident]:
    """Which of those that no load uses; none where all of them together would not be enough."""
    chosen: list[Resident] = []
    for resident in sorted(idle):
        if wanted <= 0:
            break
        chosen.append(resident)
        wanted -= resident.nbytes
    return chosen if wanted <= 0 else []
