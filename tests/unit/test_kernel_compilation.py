"""The GPU's programs are compiled where there is no GPU, too."""

from __future__ import annotations

import os
import subprocess
import sys

# Of an H100, for one program.
SHARED_MEMORY_BYTES = 227 << 10


def test_every_program_compiles_for_an_h100_and_fits_its_shared_memory():
    """What the interpreter accepts, the compiler may not."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernel_compilation"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    sizes = [line.split() for line in done.stdout.splitlines()]
    assert {name for name, _ in sizes} == {
        "attend_split", "attend_tile", "join_splits", "rotate_and_store", "add_rms_norm", "silu_and_mul",
    }  # fmt: skip
    assert all(int(shared) <= SHARED_MEMORY_BYTES for _, shared in sizes), sizes
