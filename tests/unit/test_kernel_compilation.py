"""The GPU's programs are compiled where there is no GPU, too."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("capability", "shared_memory_kib"), [(80, 163), (89, 99), (90, 227)], ids=["A100", "L4", "H100"]
)
def test_every_program_compiles_and_fits_the_shared_memory(capability, shared_memory_kib):
    """What the interpreter accepts, the compiler may not."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernel_compilation", str(capability)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    sizes = [line.split() for line in done.stdout.splitlines()]
    assert {name for name, _ in sizes} == {
        "attend_split", "attend_tile", "join_splits", "rotate_and_store", "add_rms_norm", "silu_and_mul",
    }  # fmt: skip
    assert all(int(shared) <= shared_memory_kib << 10 for _, shared in sizes), sizes
