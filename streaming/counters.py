"""What a load met on its way beside bytes: kept by whoever meets it, told to the server with the load's report.

Plain numbers of one loader process. Knows no metric's name.
"""

from __future__ import annotations

import msgspec


class FetchCounters(msgspec.Struct, kw_only=True):
    """Counted on the event loop of the lanes; one thread, so no lock.

    `retries` are by cause; `hedges` second reads of a slow range, `hedges_won` those that came first, `wasted_bytes` what
    the slower one of two had been asked for; `throttles` answers that asked for less; `verified_bytes` compared with
    the manifest's digests, `unverified_bytes` for which there are none; `mismatches` blocks whose digest differed;
    `cache_hit_bytes` read from the local cache, `cache_miss_bytes` fetched although there is one.
    """

    retries: dict[str, int] = {}
    hedges: int = 0
    hedges_won: int = 0
    wasted_bytes: int = 0
    throttles: int = 0
    verified_bytes: int = 0
    unverified_bytes: int = 0
    mismatches: int = 0
    cache_hit_bytes: int = 0
    cache_miss_bytes: int = 0

    def copied(self) -> FetchCounters:
        """As they stand now; later counting does not change it."""
        return msgspec.structs.replace(self, retries=dict(self.retries))

    def plus(self, other: FetchCounters) -> FetchCounters:
        """What two loaders of one load have met together."""
        mine, others = msgspec.structs.asdict(self), msgspec.structs.asdict(other)
        causes = mine.pop("retries") | others.pop("retries")
        return FetchCounters(
            retries={cause: self.retries.get(cause, 0) + other.retries.get(cause, 0) for cause in causes},
            **{name: count + others[name] for name, count in mine.items()},
        )
