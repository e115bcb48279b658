"""What a child process does before anything else, so that nobody is orphaned.

Takes nothing from the rest of the project; Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal

_PR_SET_PDEATHSIG = 1
_NICENESS = 10
_SMALL_MACHINE_CORES = 4
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_HEAPS = 4
_HEAP_BLOCK_BYTES = 32 << 20  # the most that glibc takes
_KEEP_ALL = (1 << 31) - 1


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
    one in a hundred took 70 to 130 ms on two cores. The total work is the same, so readiness is not later. A
    larger machine has room for both, and there it would only give way to strangers.
    """
    if (os.cpu_count() or 1) <= _SMALL_MACHINE_CORES:
        os.nice(_NICENESS)


def raise_open_files() -> None:
    """Let this process open as many files as it may: a cache on disk holds three for every blob.

    The soft limit is low for the sake of programs that use select(), which this one does not.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # a hard limit above what the kernel allows by now
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def show_devices(visible: str) -> None:
    """Let this process see the GPU `visible` only; CUDA reads the variable when it starts."""
    os.environ["CUDA_VISIBLE_DEVICES"] = visible


def hide_variables(prefix: str) -> None:
    """Take variables from what native code sees of the environment; Python's own copy keeps them."""
    for name in os.environ:
        if name.startswith(prefix):
            os.unsetenv(name)


def reuse_large_blocks() -> None:
    """Have the allocator keep the few large blocks that fetched chunks come in, and use them again.

    A few heaps, no mapping of its own for a chunk, nothing returned to the kernel: a block that is mapped anew has
    4,096 pages to be zeroed. By itself glibc spreads chunks over a heap per thread, which grows with the model.
    """
    libc = ctypes.CDLL(None)
    for option, value in (
        (_M_ARENA_MAX, _HEAPS),
        (_M_MMAP_THRESHOLD, _HEAP_BLOCK_BYTES),
        (_M_TRIM_THRESHOLD, _KEEP_ALL),
    ):
        libc.mallopt(option, value)
