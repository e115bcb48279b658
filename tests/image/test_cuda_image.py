"""The image for GPUs, built here: its kernels are found, and no compiler is needed. What needs a GPU is in tests/gpu."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.coldstream import ROOT
from tools.containers import Containers, containers
from tools.image import CUDA_IMAGE, build

pytestmark = [pytest.mark.cuda_image, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def cuda_podman():
    """Podman, with the image of this checkout; several gigabytes and minutes."""
    with containers() as tools:
        build(tools, target="cuda", image=CUDA_IMAGE)
        yield tools


def inside(podman: Containers, stub: Path) -> dict[str, object]:
    """What `inside_cuda.py` says: as the pod's user, on a file system that is read-only, and a /tmp without programs."""
    command = ["podman", "run", "--rm", "--interactive", "--network", "host", "--read-only", "--tmpfs", "/tmp:noexec"]
    command += ["--cap-drop", "ALL", "--volume", f"{stub}:/stub:ro", "--volume", f"{ROOT}/image/models:/models:ro"]
    command += ["--entrypoint", "/opt/coldstream/bin/python", CUDA_IMAGE, "-"]
    script = (Path(__file__).parent / "inside_cuda.py").read_bytes()
    done = subprocess.run(podman.command(*command), input=script, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_every_kernel_of_its_models_is_there_without_a_compiler(cuda_podman, tmp_path):
    """For both kinds of GPU; the module that calls the driver, too."""
    stub = tmp_path / "libcuda.so.1"
    flags = ["-shared", "-Wl,-soname,libcuda.so.1", "-o", str(stub), "-x", "c", "/dev/null"]
    subprocess.run(["gcc", *flags], check=True)
    for path in (tmp_path, stub):
        path.chmod(0o755)
    found = inside(cuda_podman, tmp_path)
    assert found["cuda"]
    assert found["kernels"] > 100
    assert found["linked"] == found["kernels"] + 1
    assert (found["compilers"], found["compiled_here"]) == ([], [])
