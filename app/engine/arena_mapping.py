"""The arena as the engine sees it: the memory behind a file descriptor, as one tensor of bytes.

Knows no tensor's name. The mapping is read-only: the loader is the only writer.
"""

from __future__ import annotations

import mmap
import os
import warnings

import torch

from streaming.errors import DeviceError


def map_arena(fd: int, arena_bytes: int) -> torch.Tensor:
    """Map a host arena and close `fd`; (arena_bytes,) uint8. The tensor keeps the mapping alive.

    Raises:
        DeviceError: The memory behind `fd` is smaller than the plan says, or cannot be mapped.
    """
    try:
        mapping = mmap.mmap(fd, arena_bytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    except (OSError, ValueError) as error:
        raise DeviceError(f"cannot map the arena of {arena_bytes} bytes: {error}") from error
    finally:
        os.close(fd)
    with warnings.catch_warnings():
        # Nothing writes to a parameter; torch cannot know that and warns of any read-only buffer.
        warnings.filterwarnings("ignore", message="The given buffer is not writable", category=UserWarning)
        return torch.frombuffer(mapping, dtype=torch.uint8)
