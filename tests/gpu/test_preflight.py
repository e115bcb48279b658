"""Preflight on a real GPU: what the driver says is what its own tools say."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.coldstream import ROOT

pytestmark = pytest.mark.gpu


def test_a_real_gpu_is_seen_as_nvidia_smi_sees_it(planted):
    """Name, driver and compute capability agree, torch fits the driver, and a tiny model has room."""
    folder, _, _ = planted
    command = [sys.executable, "-P", "-m", "app", "preflight", str(folder), "--json", "--device", "cuda"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    query = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader", "--id=0"]
    name, driver, capability = (
        subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().split(", ")
    )
    seen = found["gpu"]["figures"]
    assert (seen["name"], seen["driver_version"], seen["compute_capability"]) == (name, driver, capability)
    assert [found[check]["status"] for check in ("gpu", "gpu-sharing", "gpu-memory")] == ["ok"] * 3
    assert found["torch"]["status"] in {"ok", "warning"}
