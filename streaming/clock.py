"""One clock for several processes: CLOCK_BOOTTIME, which the kernel also stamps process starts with.

Knows nothing of what is timed.
"""

from __future__ import annotations

import os
import time


def boottime_s() -> float:
    """Now, in seconds."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def exec_time_s(pid: int | str = "self") -> float:
    """When the kernel started a process (field 22 of /proc/PID/stat; a grain of 10 ms)."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:  # noqa: PTH123 - pathlib costs 10 ms of import
        after_name = stat.read().rpartition(")")[2].split()
    return int(after_name[19]) / os.sysconf("SC_CLK_TCK")
