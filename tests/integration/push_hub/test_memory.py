"""`push` from a hub holds a few blocks in memory, and nothing on a disk."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
from azure.storage.blob import ContainerClient
from safetensors.numpy import save_file

from tests.integration.push_hub.pushes import MIB


def test_weights_pass_through_a_bounded_memory_and_no_disk(served, folder, container, environ, tmp_path):
    """Of 96 MiB in four shards, no more is in memory than lanes and files hold, and nothing is written to a disk."""
    folder.mkdir()
    sizes = {"org/little": 1 << 10, "org/large": 24 * MIB}
    for repo_id, nbytes in sizes.items():
        for shard in range(4):
            save_file({f"t{shard}": np.zeros(nbytes, dtype=np.uint8)}, folder / f"{shard}.safetensors")
        served.commit(repo_id, folder)
    peaks = {repo_id: measured(repo_id, container, environ) for repo_id in sizes}
    lanes, files, chunk_bytes = 4, 4, MIB
    # Twice that, for what clients and allocator keep beside it.
    bound_bytes = 2 * (lanes + 2 * files) * chunk_bytes
    (little, _), (large, written) = peaks.values()
    assert large - little < bound_bytes
    assert written < MIB
    kept = [path.stat().st_size for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert sum(kept) < 64 << 10


def measured(repo_id: str, container: ContainerClient, environ: dict[str, str]) -> tuple[int, int]:
    """The most memory that a push had, and what it gave to disks, in bytes: as the kernel counted."""
    words = ["push", repo_id, f"az://{container.container_name}/{repo_id}", "--concurrency", "4", "--chunk-mib", "1"]
    code = (
        "import sys, re; from pathlib import Path; from app.__main__ import run; code = run(sys.argv[1:]);"
        "peak = re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1];"
        "written = re.search(r'write_bytes: (\\d+)', Path('/proc/self/io').read_text())[1];"
        "print('measured', peak, written); sys.exit(code)"
    )
    command = [sys.executable, "-B", "-c", code, *words]
    done = subprocess.run(command, env={**os.environ, **environ}, capture_output=True, text=True, check=True)
    peak_kib, written_bytes = done.stdout.splitlines()[-1].split()[1:]
    return int(peak_kib) << 10, int(written_bytes)
