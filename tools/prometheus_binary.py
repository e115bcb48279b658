"""Where promtool is; fetched where it is missing.

Order: PROMTOOL_BIN, PATH, `.tools/prometheus/`. That folder is filled from Debian's package `prometheus` with apt-get,
unpacked beside the system and never over it. Knows no metric.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tools.debian_packages import PackagesError, fill

_ROOT = Path(__file__).resolve().parent.parent
UNPACKED = _ROOT / ".tools" / "prometheus"
_WHAT_TO_DO = "install Debian's prometheus, or set PROMTOOL_BIN"


class PrometheusError(Exception):
    """promtool cannot be had; one line."""


def ensure_promtool() -> Path:
    """The program, fetched first if the machine lacks it.

    Raises:
        PrometheusError: There is none and none can be had.
    """
    if named := os.environ.get("PROMTOOL_BIN") or shutil.which("promtool"):
        return Path(named)
    unpacked = UNPACKED / "usr/bin/promtool"
    if not unpacked.is_file():
        try:
            fill(UNPACKED, ["prometheus"])
        except PackagesError as error:
            raise PrometheusError(f"{error}: {_WHAT_TO_DO}") from error
    return unpacked
