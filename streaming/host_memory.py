"""How much memory the host can still give. Knows nothing of who asks."""

from __future__ import annotations


def available_bytes() -> int:
    """What the kernel believes can be had without swapping (MemAvailable)."""
    with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123 - pathlib costs 10 ms of import
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    raise AssertionError("Linux has MemAvailable since 3.14")
