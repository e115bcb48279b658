"""The image for GPUs, built here: its kernels are found, and no compiler is needed. What needs a GPU is in tests/gpu."""

from __future__ import annotations

import subprocess

import pytest

from tests.coldstream import ROOT
from tests.image.words import check_packages, said_inside
from tools.containers import containers
from tools.image import CUDA_IMAGE, build

pytestmark = [pytest.mark.cuda_image, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def cuda_podman():
    """Podman, with the image of this checkout; several gigabytes and minutes."""
    with containers() as tools:
        build(tools, target="cuda", image=CUDA_IMAGE)
        yield tools


def test_every_kernel_of_its_models_is_there_without_a_compiler(cuda_podman, tmp_path):
    """For both kinds of GPU; the module that calls the driver, too."""
    stub = tmp_path / "libcuda.so.1"
    flags = ["-shared", "-Wl,-soname,libcuda.so.1", "-o", str(stub), "-x", "c", "/dev/null"]
    subprocess.run(["gcc", *flags], check=True)
    for path in (tmp_path, stub):
        path.chmod(0o755)
    mounts = (f"{tmp_path}:/stub:ro", f"{ROOT}/image/models:/models:ro")
    found = said_inside(cuda_podman, CUDA_IMAGE, "inside_cuda.py", *(f"--volume={mount}" for mount in mounts))
    assert found["cuda"]
    assert found["kernels"] > 100
    assert found["linked"] == found["kernels"] + 1
    assert (found["compilers"], found["compiled_here"]) == ([], [])


def test_every_import_is_bytecode_and_every_package_in_the_bill_of_materials(cuda_podman):
    """As in the image for processors."""
    inside = said_inside(cuda_podman, CUDA_IMAGE, "inside.py")
    check_packages(inside)
    assert inside["programs"] == ["apt-get", "coldstream"]
