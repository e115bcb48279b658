"""Where promtool is; fetched where it is missing.

Order: PROMTOOL_BIN, PATH, `.tools/prometheus/`. That folder is filled from Debian's package `prometheus` with apt-get,
unpacked beside the system and never over it. Knows no metric.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

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
        _fill(UNPACKED)
    return unpacked


def _fill(folder: Path) -> None:
    """Unpack into a folder of its own and rename it: another process may be doing the same."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder.parent) as scratch:
        built = Path(scratch) / "prometheus"
        _run(["dpkg-deb", "--extract", str(_download(Path(scratch))), str(built)], scratch)
        try:
            built.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise


def _download(scratch: Path) -> Path:
    """The package, with package lists of its own if the system's are missing or too old."""
    download = ["download", "prometheus"]
    if subprocess.run(["apt-get", *download], cwd=scratch, capture_output=True, check=False).returncode:
        lists, cache = scratch / "lists", scratch / "cache"
        (lists / "partial").mkdir(parents=True)
        (cache / "archives" / "partial").mkdir(parents=True)
        own = ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={cache}"]
        _run(["apt-get", *own, "update"], str(scratch))
        _run(["apt-get", *own, *download], str(scratch))
    return next(scratch.glob("prometheus*.deb"))


def _run(command: list[str], folder: str) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise PrometheusError(f"there is no {command[0]}: {_WHAT_TO_DO}") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise PrometheusError(f"{command[0]} failed: {reason}: {_WHAT_TO_DO}")
