"""Kernels that were compiled without a GPU are the ones that an engine on it looks for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.coldstream import serving, wait_for

pytestmark = pytest.mark.gpu


@pytest.fixture
def compiled(planted, tmp_path) -> Path:
    """The small checkpoint's kernels for this GPU, by a process that cannot see it."""
    major, minor = torch.cuda.get_device_capability()
    folder = tmp_path / "compiled"
    command = [sys.executable, "-m", "app.engine.kernels_ahead", "--into", str(folder)]
    command += ["--capabilities", str(10 * major + minor), str(planted[0] / "config.json")]
    subprocess.run(command, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, check=True)
    return folder


def compiled_here(cache: Path) -> set[str]:
    """Names of the kernels in a cache that are no link to another's."""
    return {path.stem for path in cache.glob("*/*.cubin") if not path.parent.is_symlink()}


def test_an_engine_compiles_none_of_them_again(planted, compiled, tmp_path):
    """Each is found by its key; without the folder, every one is compiled."""
    names = {path.stem for path in compiled.glob("*/*.cubin")}
    for flags, missing in ((("--kernels-dir", str(compiled)), set()), ((), names)):
        cache = tmp_path / f"cache-{len(flags)}"
        log_path = tmp_path / f"log-{len(flags)}"
        environ = {"TRITON_CACHE_DIR": str(cache)}
        with serving(str(planted[0]), "--device", "cuda", *flags, log_path=log_path, environ=environ) as server:
            server.wait_ready()
            wait_for(lambda server=server: "kernels compiled in" in server.log(), 60)
            answer = server.complete(planted[1], max_tokens=8)
        assert answer["choices"][0]["finish_reason"] == "length"
        assert compiled_here(cache) == missing
