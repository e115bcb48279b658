"""t=0. Loader and engine are spawned before a setting is read; everything else is imported after that.

Takes the command line. The order of these lines is the cold start: an interpreter, CUDA and torch take seconds,
reading the settings takes a tenth of one, and the children need none of them to begin.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from app.child import Child, spawn
from streaming.clock import boottime_s


def main() -> None:
    """The `coldstream` command: exits 0, or with the error's code after one line on standard error."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code. No child outlives it."""
    began_s = boottime_s()
    children = _spawn_children() if _serves(arguments) else ()
    try:
        from app import command

        return command.run(arguments, os.environ, children, began_s)
    except KeyboardInterrupt:
        return 130
    finally:
        for child in children:
            child.kill()


def _serves(arguments: Sequence[str]) -> bool:
    return arguments[:1] == ["serve"] and not {"-h", "--help"}.intersection(arguments)


def _spawn_children() -> tuple[Child, Child]:
    """The loader and the engine, which wait for what they are to do while they import what it takes."""
    # Until the event loop has its own handlers; as PID 1 of a container the signal would even be lost. Nothing
    # is raised: an exception in the middle of an extension's import may crash it. The children die with us.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    engine = spawn("app.engine", os.environ)  # first, because torch takes longest
    return spawn("streaming", os.environ), engine


if __name__ == "__main__":
    main()
