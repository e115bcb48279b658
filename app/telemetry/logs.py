"""Log lines on standard error, one format for all three processes. Knows nothing of what is logged."""

from __future__ import annotations

import logging
import sys


def configure(level: str) -> None:
    """Send every logger's records from `level` upwards to standard error."""
    logging.basicConfig(
        level=level.upper(),
        stream=sys.stderr,
        format="%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    # It tells of its own start and end under the name "uvicorn.error"; the lifecycle's lines say it better.
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.getLogger().level))
