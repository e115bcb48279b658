"""Runs a bash block with stand-ins for the programs that it calls: they do nothing and succeed.

Takes a block and names of programs, gives the calls. Knows no program.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Collection
from pathlib import Path

_STAND_IN = """\
#!/bin/bash
printf '%s\\0' "$(( $# + 1 ))" "${0##*/}" "$@" >>"$CALLS"
"""


def calls_of(block: str, programs: Collection[str], folder: Path) -> list[list[str]]:
    """Every call of the programs, as its words, in the order in which bash makes them.

    Args:
        block: Run with `set -euo pipefail`, in `folder`.
        programs: The only ones that there are.
        folder: An empty one, which keeps what the block makes.

    Raises:
        subprocess.CalledProcessError: The block fails, or calls another program.
    """
    (folder / "bin").mkdir()
    for program in programs:
        path = folder / "bin" / program
        path.write_text(_STAND_IN)
        path.chmod(0o755)
    calls = folder / "calls"
    calls.touch()
    subprocess.run(
        ["/bin/bash", "-c", f"set -euo pipefail\n{block}"],
        cwd=folder,
        env={"PATH": str(folder / "bin"), "CALLS": str(calls), "HOME": os.devnull},
        check=True,
        capture_output=True,
        timeout=30,
    )
    return _split(calls.read_text().split("\0")[:-1])


def _split(words: list[str]) -> list[list[str]]:
    """Calls, of which each is preceded by the number of its words."""
    calls = []
    while words:
        count = int(words[0])
        calls.append(words[1 : count + 1])
        words = words[count + 1 :]
    return calls
