"""Tests on a real GPU. What they need and cannot find is a failure, never a skip: run them on the right machine.

python -m pytest -m gpu tests/gpu
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tools.random_checkpoint import write_checkpoint


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int], int]:
    """A small random checkpoint, a prompt, and the token that must follow it."""
    folder = tmp_path_factory.mktemp("planted") / "tiny"
    found = write_checkpoint(folder, "tiny", shards=3, device="cuda")
    return folder, list(found["prompt_token_ids"]), found["token_id"]


def gpu_used_mib() -> int:
    """What nvidia-smi says is taken of the first GPU."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def gpu_process_count() -> int:
    """How many processes have a context on the first GPU."""
    command = ["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader", "--id=0"]
    return len(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
