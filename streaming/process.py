"""What a child process does before anything else, so that nobody is orphaned.

Takes nothing from the rest of the project; Linux only.
"""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_NICENESS = 10
_M_MMAP_THRESHOLD = -3
_LARGE_BLOCK_BYTES = 1 << 20


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process the moment its parent dies.

    The parent may already be gone when this runs (the process starts in 20 ms, a kill needs none), so
    the parent's pid is checked after the request is in force.

    Args:
        parent_pid: The pid of the process that spawned this one.

    Raises:
        SystemExit: The parent is gone.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        raise SystemExit(1)


def give_way() -> None:
    """Let the server's threads run first when the processor is full.

    Its probes must be answered while eight lanes and an import of torch fill a small machine: without this
    one in a hundred took 70 to 130 ms on two cores. The total work is the same, so readiness is not later.
    """
    os.nice(_NICENESS)


def return_large_blocks() -> None:
    """Have the allocator give large blocks back to the kernel as soon as they are freed.

    By itself glibc raises its threshold to the size of the first chunks that are freed, and keeps the later
    ones in its heaps: the loader's peak then grew with the model, from 200 MiB at 256 MiB of weights to
    420 MiB at 3 GiB, where it now stays at 250 MiB.
    """
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)
