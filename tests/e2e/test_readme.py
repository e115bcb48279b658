"""README's commands do what they say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.coldstream import ROOT, wait_for
from tests.documents.pages import texts
from tests.documents.stand_ins import calls_of
from tools.child import running
from tools.ports import free_port


def test_the_make_targets_exist(tmp_path):
    """Every `make` command of the README is a target."""
    (block,) = texts("README.md", "Coldstream", "bash")
    calls = calls_of(block, ("make",), tmp_path)
    assert calls == [["make", "demo", "CHECK=1"], ["make", "test"]]
    for call in calls:
        subprocess.run([*call, "--dry-run"], cwd=ROOT, check=True, capture_output=True)


def test_push_inspect_serve_and_curl(demo_model_dir, azure_environment, tmp_path):
    """The commands of "Serve a model", as they stand, but for the account and the port."""
    (tmp_path / "my-model").symlink_to(demo_model_dir)
    port = str(free_port())
    environ = {**os.environ, **azure_environment, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    commands, curl = texts("README.md", "Serve a model", "bash")
    *preparation, serve = [line for line in commands.splitlines() if line.startswith("coldstream")]
    assert len(preparation) == 4
    said = ""
    for command in preparation:
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        said += done.stdout
    assert " files, 0 differ" in said
    assert "served        yes" in said
    assert "az://models/my-model would be served here" in said
    serve, curl = serve.replace("8000", port), curl.replace("8000", port)
    with running(["bash", "-c", f"exec {serve}"], log_path=tmp_path / "log", env=environ, grace_s=10):
        ready = ["curl", "--silent", "--fail", f"http://127.0.0.1:{port}/health"]
        wait_for(lambda: subprocess.run(ready, capture_output=True).returncode == 0, 90)
        answer = subprocess.run(["bash", "-c", curl], capture_output=True, text=True)
    assert "Paris" in answer.stdout
    assert answer.stdout.endswith("data: [DONE]\n\n")
