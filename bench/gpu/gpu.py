"""What nvidia-smi says: the card, and how much of its memory is in use. Knows no process."""

from __future__ import annotations

import subprocess
import time

_FREE_AGAIN_TIMEOUT_S = 60.0
# What an idle driver may take or give back meanwhile.
_SLACK_MIB = 200.0


def query(*fields: str) -> list[str]:
    """The first GPU's fields as nvidia-smi names them."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", "--id=0"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [value.strip() for value in text.strip().split(",")]


def used_mib() -> float:
    """Memory in use, by whatever process."""
    return float(query("memory.used")[0])


def wait_until_free(baseline_mib: float) -> None:
    """Return once no more memory is in use than before anything started.

    Raises:
        RuntimeError: It is still in use after a minute.
    """
    deadline_s = time.monotonic() + _FREE_AGAIN_TIMEOUT_S
    while (used := used_mib()) > baseline_mib + _SLACK_MIB:
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"{used:.0f} MiB of the GPU are still in use, {baseline_mib:.0f} were at the start")
        time.sleep(0.2)
