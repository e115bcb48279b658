"""Where envsubst is; fetched where it is missing.

Order: ENVSUBST_BIN, PATH, `.tools/gettext/`. That folder is filled from Debian's package `gettext-base` with apt-get,
unpacked beside the system and never over it. Knows no manifest.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tools.debian_packages import PackagesError, fill

_ROOT = Path(__file__).resolve().parent.parent
UNPACKED = _ROOT / ".tools" / "gettext"
_WHAT_TO_DO = "install Debian's gettext-base, or set ENVSUBST_BIN"


class GettextError(Exception):
    """envsubst cannot be had; one line."""


def ensure_envsubst() -> Path:
    """The program, fetched first if the machine lacks it.

    Raises:
        GettextError: There is none and none can be had.
    """
    if named := os.environ.get("ENVSUBST_BIN") or shutil.which("envsubst"):
        return Path(named)
    unpacked = UNPACKED / "usr/bin/envsubst"
    if not unpacked.is_file():
        try:
            fill(UNPACKED, ["gettext-base"])
        except PackagesError as error:
            raise GettextError(f"{error}: {_WHAT_TO_DO}") from error
    return unpacked
