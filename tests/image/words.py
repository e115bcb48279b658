"""What a script says inside an image: run there as the pod's user, without rights, on a file system that is read-only."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tools.containers import Containers


def said_inside(podman: Containers, image: str, script: str, *flags: str) -> Any:
    """The JSON that a script of this folder prints, with `podman run`'s flags."""
    command = ["podman", "run", "--rm", "--interactive", "--network", "host", "--read-only", "--tmpfs", "/tmp:noexec"]
    command += ["--cap-drop", "ALL", *flags, "--entrypoint", "/opt/coldstream/bin/python", image, "-"]
    code = (Path(__file__).parent / script).read_bytes()
    done = subprocess.run(podman.command(*command), input=code, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def check_packages(inside: Any) -> None:
    """Every import of `inside.py` was bytecode that is not compared (Debian's has times of its own), every package is in the bill."""
    assert inside["without_bytecode"] == []
    assert set(inside["bytecode_kinds"]) <= {0, 1}
    assert 1 in inside["bytecode_kinds"]
    bill = {each["name"].lower(): each["version"] for each in inside["bill"]["components"]}
    assert bill == inside["packages"]
    assert {"coldstream", "torch", "transformers", "opentelemetry-sdk"} <= bill.keys()
    assert not {"pip", "hatchling", "cyclonedx-bom", "pytest"} & bill.keys()
