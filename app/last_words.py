"""Why the server ends, where Kubernetes shows it: the container's termination message.

Takes one line. Knows nothing of what happened. Standard library only: it may be all that works.
"""

from __future__ import annotations

import contextlib
import os

TERMINATION_LOG = "/dev/termination-log"
# What a kubelet reads of it.
_MOST_BYTES = 4096


def leave(reason: str, path: str) -> None:
    """Write `reason` to the file that a kubelet has put at `path`; where there is none, there is no kubelet."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_WRONLY | os.O_TRUNC)
        try:
            os.write(fd, reason.encode(errors="replace")[:_MOST_BYTES])
        finally:
            os.close(fd)
