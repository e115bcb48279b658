"""Where Chromium and its driver are; fetched where they are missing.

Order: CHROMIUM_BIN, PATH, `.tools/chromium/`. That folder is filled from Debian's packages with apt-get, unpacked beside
the system and never over it: what Chromium needs and this machine lacks comes along, for these programs alone. Knows no page.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
UNPACKED = _ROOT / ".tools" / "chromium"
PACKAGES = ("chromium", "chromium-driver", "fonts-dejavu-core")
_WHAT_TO_DO = "install Debian's chromium and chromium-driver, or set CHROMIUM_BIN and CHROMEDRIVER_BIN"
# The unpacked fonts first, then the system's: either may be all there is.
_FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "urn:fontconfig:fonts.dtd">
<fontconfig>
  <dir>{folder}/usr/share/fonts</dir>
  <dir>/usr/share/fonts</dir>
  <cachedir>{folder}/var/cache/fontconfig</cachedir>
</fontconfig>
"""


class ChromiumError(Exception):
    """Chromium cannot be had; one line."""


@dataclass(frozen=True)
class Programs:
    """The browser and what drives it; `environ` is for these programs alone, empty where the system has all."""

    chromium: Path
    driver: Path
    environ: Mapping[str, str] = field(default_factory=dict)


def ensure_programs() -> Programs:
    """The programs, fetched first if the machine lacks them.

    Raises:
        ChromiumError: There are none and none can be had.
    """
    chromium = os.environ.get("CHROMIUM_BIN") or shutil.which("chromium")
    driver = os.environ.get("CHROMEDRIVER_BIN") or shutil.which("chromedriver")
    if chromium and driver:
        return Programs(Path(chromium), Path(driver))
    if not UNPACKED.is_dir():
        _fill(UNPACKED)
    return _unpacked_programs(UNPACKED)


def _unpacked_programs(folder: Path) -> Programs:
    libraries = sorted({str(path.parent) for path in folder.glob("usr/lib/**/lib*.so*") if path.is_file()})
    fonts = folder / "fonts.conf"
    fonts.write_text(_FONTS.format(folder=folder))  # names the folder, which was another one while it was filled
    environ = {"LD_LIBRARY_PATH": os.pathsep.join(libraries), "FONTCONFIG_FILE": str(fonts)}
    return Programs(folder / "usr/lib/chromium/chromium", folder / "usr/bin/chromedriver", environ)


def _fill(folder: Path) -> None:
    """Unpack into a folder of its own and rename it: another process may be doing the same."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder.parent) as scratch:
        built = Path(scratch) / "chromium"
        for package in _download(Path(scratch)):
            _run(["dpkg-deb", "--extract", str(package), str(built)], scratch)
        try:
            built.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise


def _download(scratch: Path) -> list[Path]:
    """The packages and what they need, with package lists of our own if the system's are missing or too old."""
    try:
        _download_with([], scratch)
    except ChromiumError:
        lists, cache = scratch / "lists", scratch / "cache"
        (lists / "partial").mkdir(parents=True)
        (cache / "archives" / "partial").mkdir(parents=True)
        own = ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={cache}"]
        _run(["apt-get", *own, "update"], str(scratch))
        _download_with(own, scratch)
    return sorted(scratch.glob("*.deb"))


def _download_with(options: list[str], scratch: Path) -> None:
    """Download into `scratch` what an installation here would add."""
    simulation = ["apt-get", *options, "--simulate", "install", "--no-install-recommends", *PACKAGES]
    added = [line.split()[1] for line in _run(simulation, str(scratch)).splitlines() if line.startswith("Inst ")]
    # What is installed already but not on PATH is unpacked, too; a set, because the rest is in both.
    _run(["apt-get", *options, "download", *sorted({*added, *PACKAGES})], str(scratch))


def _run(command: list[str], folder: str) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ChromiumError(f"there is no {command[0]}: {_WHAT_TO_DO}") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ChromiumError(f"{command[0]} failed: {reason}: {_WHAT_TO_DO}")
    return done.stdout


def main() -> int:
    """Fetch what is missing and say where Chromium is."""
    try:
        print(ensure_programs().chromium)
    except ChromiumError as error:
        print(f"chromium: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
