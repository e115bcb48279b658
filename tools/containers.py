"""Debian's buildah, podman and mmdebstrap, and a place where they work without a daemon and leave the machine alone.

Takes nothing, gives a way to run them: in a mount namespace of their own, with images and containers below `.tools/`.
Where PATH lacks one of them they are fetched with apt-get and lie over /usr and /etc, in that namespace only. Needs root.
Knows no image.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.debian_packages import PackagesError, fill

_ROOT = Path(__file__).resolve().parent.parent
# Where the links lead: a checkout's .tools may be another one's.
_TOOLS = (_ROOT / ".tools").resolve()
_PACKAGES = ("buildah", "catatonit", "crun", "mmdebstrap", "podman")
_UNPACKED = _TOOLS / "containers"
_STATE = _TOOLS / "containers-state"
_SETTINGS = {"CONF": "containers.conf", "STORAGE_CONF": "storage.conf"}
_CAP_SYS_RESOURCE = 24

# /etc can be written, for podman keeps its networks there. A hybrid of control groups would be taken for version 2.
_ENTER = """
set -e
if [ -n "$1" ]; then
    mount -t tmpfs tmpfs /mnt
    mkdir /mnt/new /mnt/work
    mount -t overlay -o "ro,lowerdir=$1/usr:/usr" overlay /usr
    mount -t overlay -o "lowerdir=$1/etc:/etc,upperdir=/mnt/new,workdir=/mnt/work" overlay /etc
    umount -l /mnt
fi
if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi
echo ready
cat > /dev/null
"""


class ContainersError(Exception):
    """They cannot be had, or one of them has failed; its own last words."""


@dataclass(frozen=True)
class Containers:
    """The programs, for as long as their namespace is there."""

    namespace_pid: int

    def command(self, *words: str) -> list[str]:
        """What runs a program and its arguments there, with this process's environment and folder."""
        settings = [f"CONTAINERS_{name}={_STATE}/{file}" for name, file in _SETTINGS.items()]
        enter = ["nsenter", f"--target={self.namespace_pid}", "--mount", f"--wd={Path.cwd()}"]
        return [*enter, "env", *settings, *words]

    def run(self, *words: str, cwd: Path = _ROOT) -> str:
        """What it writes on stdout.

        Raises:
            ContainersError: It ended with another code than 0.
        """
        done = subprocess.run(self.command(*words), cwd=cwd, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ContainersError(f"{words[0]} failed: {done.stderr.strip()[-2000:]}")
        return done.stdout


@contextlib.contextmanager
def containers() -> Iterator[Containers]:
    """Have them for the length of a `with` block, whose end closes the holder's stdin. Containers that still run then lose their file systems: stop them.

    Raises:
        ContainersError: Not root, or the packages cannot be had.
    """
    if os.geteuid() != 0:
        raise ContainersError("images are built and run by root here: sudo make image-test")
    unpacked = "" if all(map(shutil.which, _PACKAGES)) else str(_ensure_packages())
    _write_settings()
    enter = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _ENTER, "sh", unpacked]
    with subprocess.Popen(enter, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stderr is not None
        if holder.stdout.readline() != b"ready\n":
            raise ContainersError(f"no mount namespace: {holder.stderr.read().decode().strip()}")
        yield Containers(holder.pid)


def _ensure_packages() -> Path:
    if not _UNPACKED.is_dir():
        try:
            # What podman only recommends brings its configuration.
            fill(_UNPACKED, [*_PACKAGES, "golang-github-containers-common"], with_dependencies=True)
        except PackagesError as error:
            raise ContainersError(f"{error}: apt-get install {' '.join(_PACKAGES)}") from error
    return _UNPACKED


def _write_settings() -> None:
    """No systemd, no journal; and limits stay as they are where the kernel would not let podman raise them."""
    _STATE.mkdir(parents=True, exist_ok=True)
    runtime = _STATE / "crun"
    runtime.write_text(f'#!/bin/sh\nexec {sys.executable} -IS {_ROOT}/tools/limitless_runtime.py "$@"\n')
    runtime.chmod(0o755)
    lines = ["[engine]", 'cgroup_manager = "cgroupfs"', 'events_logger = "none"']
    if not _may_raise_limits():
        lines += ["[engine.runtimes]", f'crun = ["{runtime}"]']
    (_STATE / "containers.conf").write_text("\n".join(lines) + "\n")
    storage = ["[storage]", 'driver = "overlay"', f'graphroot = "{_STATE}/storage"', f'runroot = "{_STATE}/run"']
    (_STATE / "storage.conf").write_text("\n".join(storage) + "\n")


def _may_raise_limits() -> bool:
    status = Path("/proc/self/status").read_text()
    (effective,) = (line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> _CAP_SYS_RESOURCE & 1)
