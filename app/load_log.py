"""What the log says of one load: of its source, and how its weights came.

Takes what the loader tells. An operator reads here which path the bytes took and what nobody has verified; what the load changes
is the supervisor's matter.
"""

from __future__ import annotations

import logging

from streaming.counters import FetchCounters
from streaming.messages import Described, LoadRequest, Plan
from streaming.options import HOST_STAGING

logger = logging.getLogger(__name__)


class LoadLog:
    """One load's lines.

    Args:
        request: What the loader has been asked for.
        device: Where weights land if they do not go to disk.
    """

    def __init__(self, request: LoadRequest, device: str):
        self._request = request
        self._device = device
        self._is_staged = request.strategy == HOST_STAGING
        self._has_manifest = False

    def described(self, described: Described) -> None:
        """Say that it is our comparison, not the service, that would notice an overwritten blob."""
        self._has_manifest = described.has_manifest
        unpinned = [version.name for version in described.versions if not version.is_pinned]
        if unpinned:
            logger.warning(
                "the source gives no strong ETag (%s): size, ETag and date of every answer are compared", unpinned[0]
            )

    def landed(self, plan: Plan, counters: FetchCounters, *, tensors: int, seconds: float) -> None:
        """The line that proves the path and says what was verified, and how much of it a cache has saved."""
        logger.info(
            "%s %d tensors in %d shards, %d bytes, %s -> %s in %.2f s (%.2f GB/s); %d bytes verified, %d unverified%s",
            "staged" if self._is_staged else "streamed",
            tensors,
            len(plan.versions),
            plan.fetch_bytes,
            self._request.uri,
            "disk" if self._is_staged else self._device,
            seconds,
            plan.fetch_bytes / max(seconds, 1e-9) / 1e9,
            counters.verified_bytes,
            counters.unverified_bytes,
            self._why_unverified(),
        )
        if self._request.cache is not None and not self._is_staged:
            hit_bytes = counters.cache_hit_bytes
            read_bytes = hit_bytes + counters.cache_miss_bytes
            share = 100 * hit_bytes / max(read_bytes, 1)
            folder = self._request.cache.folder
            logger.info("cache: %d of %d bytes (%.1f %%) came from %s", hit_bytes, read_bytes, share, folder)

    def _why_unverified(self) -> str:
        """Why nothing was; of single shards and blocks, fallbacks have said why."""
        if not self._has_manifest:
            return " (no manifest: `coldstream push` writes one)"
        return " (host-staging compares headers and metadata only)" if self._is_staged else ""
