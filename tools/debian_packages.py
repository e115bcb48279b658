"""Debian's packages beside the system and never over it: downloaded with apt-get, unpacked into a folder of their own.

Takes names, gives a folder or a program; needs no root. Knows no program by name.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

_TOOLS = Path(__file__).resolve().parent.parent / ".tools"


class PackagesError(Exception):
    """They cannot be had; one line."""


def ensure_program(name: str, package: str) -> Path:
    """Where a program of /usr/bin is: by the variable NAME_BIN, by PATH, or in `.tools/PACKAGE/`, which is filled first.

    Raises:
        PackagesError: There is none and none can be had.
    """
    variable = f"{name.upper()}_BIN"
    if named := os.environ.get(variable) or shutil.which(name):
        return Path(named)
    folder = _TOOLS / package
    unpacked = folder / "usr/bin" / name
    if not unpacked.is_file():
        try:
            fill(folder, [package])
        except PackagesError as error:
            raise PackagesError(f"{error}: install Debian's {package}, or set {variable}") from error
    return unpacked


def fill(folder: Path, packages: Sequence[str], *, with_dependencies: bool = False) -> None:
    """Unpack the packages into `folder`, in one step: another process may be doing the same.

    Args:
        folder: Is there once this returns.
        packages: Their names.
        with_dependencies: Whether what they need and this machine lacks comes along.

    Raises:
        PackagesError: apt-get or dpkg-deb is not there, or has failed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder.parent) as scratch:
        built = Path(scratch) / folder.name
        for package in _download(packages, Path(scratch), with_dependencies=with_dependencies):
            _run(["dpkg-deb", "--extract", str(package), str(built)], scratch)
        try:
            built.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise


def _download(packages: Sequence[str], scratch: Path, *, with_dependencies: bool) -> list[Path]:
    """The packages, with package lists of our own if the system's are missing or too old."""
    try:
        _download_with([], packages, scratch, with_dependencies=with_dependencies)
    except PackagesError:
        lists, cache = scratch / "lists", scratch / "cache"
        (lists / "partial").mkdir(parents=True)
        (cache / "archives" / "partial").mkdir(parents=True)
        own = ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={cache}"]
        _run(["apt-get", *own, "update"], str(scratch))
        _download_with(own, packages, scratch, with_dependencies=with_dependencies)
    return sorted(scratch.glob("*.deb"))


def _download_with(options: list[str], packages: Sequence[str], scratch: Path, *, with_dependencies: bool) -> None:
    added: list[str] = []
    if with_dependencies:
        simulation = ["apt-get", *options, "--simulate", "install", "--no-install-recommends", *packages]
        added = [line.split()[1] for line in _run(simulation, str(scratch)).splitlines() if line.startswith("Inst ")]
    # What is installed already but not on PATH is unpacked, too; a set, because the rest is in both.
    _run(["apt-get", *options, "download", *sorted({*added, *packages})], str(scratch))


def _run(command: list[str], folder: str) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise PackagesError(f"there is no {command[0]}") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise PackagesError(f"{command[0]} failed: {reason}")
    return done.stdout
