"""Many loads at once against one limited source: what they asked for, and when each was through.

Takes a server and how many loads, gives figures to make demands of. Knows no promise.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from streaming.options import PipelineOptions, SourceOptions
from tests.faults.faults import Refusal
from tests.faults.loading import Outcome, load_in_process
from tests.faults.server import FaultServer, Logged


@dataclass(frozen=True)
class Storm:
    """What came of it.

    `ideal_s` is what the shared bandwidth and the limit on requests allow at best; `granted_bytes` is what was asked for and
    answered, `asked_bytes` also what was refused, both of shards beyond their headers.
    """

    outcomes: Sequence[Outcome]
    ideal_s: float
    least_bytes: int
    granted_bytes: int
    asked_bytes: int
    requests: int
    refused: int

    @property
    def slowest(self) -> float:
        """The last load's seconds as a multiple of the ideal."""
        return max(outcome.seconds for outcome in self.outcomes) / self.ideal_s

    @property
    def amplification(self) -> float:
        """Bytes answered as a multiple of the least: what was fetched twice or in vain. A refusal carries none."""
        return self.granted_bytes / self.least_bytes

    @property
    def asked(self) -> float:
        """Bytes asked for as a multiple of the least, with what was refused: the stricter reading of the promise."""
        return self.asked_bytes / self.least_bytes

    @property
    def failed(self) -> int:
        """How many loads ended with an error."""
        return sum(outcome.error is not None for outcome in self.outcomes)

    def __str__(self) -> str:
        """One line for a report."""
        return (
            f"{len(self.outcomes)} loads, {self.failed} failed, slowest {self.slowest:.2f} x ideal {self.ideal_s:.1f} s, "
            f"bytes {self.amplification:.3f} x least, with refused ones {self.asked:.3f} x, "
            f"{self.refused} of {self.requests} requests refused"
        )


def storm(
    server: FaultServer,
    options: SourceOptions,
    pipeline: PipelineOptions,
    *,
    loads: int,
    bytes_per_s: float,
    requests_per_s: float,
) -> Storm:
    """Start so many loader processes at once and wait for all; the limits are those that the server was given."""
    start_s = time.monotonic()
    with ThreadPoolExecutor(loads) as pool:
        outcomes = list(pool.map(lambda _: load_in_process(server.url, options, pipeline), range(loads)))
    log = [each for each in server.requests if each.time_s >= start_s]
    weights = [each for each in log if each.name.endswith(".safetensors") and each.start]
    least_bytes = loads * sum({(each.name, each.start): each.end - each.start for each in weights}.values())
    answered = [each for each in log if not _is_refused(each)]
    needed = loads * len({(each.name, each.start, each.end) for each in log})
    return Storm(
        outcomes=outcomes,
        ideal_s=max(least_bytes / bytes_per_s, needed / requests_per_s),
        least_bytes=least_bytes,
        granted_bytes=sum(each.end - each.start for each in weights if not _is_refused(each)),
        asked_bytes=sum(each.end - each.start for each in weights),
        requests=len(log),
        refused=len(log) - len(answered),
    )


def _is_refused(each: Logged) -> bool:
    return isinstance(each.fault, Refusal)
