"""Where Chromium and its driver are; fetched where they are missing.

Order: CHROMIUM_BIN, PATH, `.tools/chromium/`. That folder is filled from Debian's packages: what Chromium needs and this
machine lacks comes along, for these programs alone. Knows no page.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tools.debian_packages import PackagesError, fill

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
        try:
            fill(UNPACKED, PACKAGES, with_dependencies=True)
        except PackagesError as error:
            raise ChromiumError(f"{error}: {_WHAT_TO_DO}") from error
    return _unpacked_programs(UNPACKED)


def _unpacked_programs(folder: Path) -> Programs:
    libraries = sorted({str(path.parent) for path in folder.glob("usr/lib/**/lib*.so*") if path.is_file()})
    fonts = folder / "fonts.conf"
    fonts.write_text(_FONTS.format(folder=folder))  # names the folder, which was another one while it was filled
    environ = {"LD_LIBRARY_PATH": os.pathsep.join(libraries), "FONTCONFIG_FILE": str(fonts)}
    return Programs(folder / "usr/lib/chromium/chromium", folder / "usr/bin/chromedriver", environ)


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
