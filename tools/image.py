"""`python -m tools.image [cuda]`: the image, built on this machine from Debian's packages and pip's.

Takes the checkout's Dockerfile and whatever index pip is told to use here, gives `localhost/coldstream:dev`, or
`localhost/coldstream:cuda` with several gigabytes of CUDA. Its base is made with mmdebstrap, so that nothing comes from an
image registry. Knows no container.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from tools.containers import Containers, ContainersError, containers

IMAGE = "localhost/coldstream:dev"
CUDA_IMAGE = "localhost/coldstream:cuda"
_BASE = "localhost/coldstream-base"
_DEBIAN = "bookworm"
# Triton's own module is compiled for the one target, and needs Python's headers.
_PYTHON = {
    "cpu": "python3,python3-venv,ca-certificates",
    "cuda": "python3,python3-venv,ca-certificates,libpython3-dev",
}
_DEFAULT_INDEX = "https://pypi.org/simple"


def build(
    tools: Containers, *, target: str = "cpu", image: str = IMAGE, settings: Mapping[str, str] | None = None
) -> None:
    """Build a target of the Dockerfile, every layer anew: this buildah does not see that a stage it mounts has changed.

    Args:
        tools: What builds.
        target: Which one.
        image: Its name.
        settings: pip's, in place of this machine's; a secret of the build.

    Raises:
        ContainersError: With the last words of what failed.
    """
    base = _ensure_base(tools, target)
    settings = pip_settings() if settings is None else settings
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch, "pip.conf")
        config.write_text("[global]\n" + "".join(f"{name} = {text}\n" for name, text in settings.items()))
        mounts = [f"{path}:{path}:ro" for path in local_paths(settings)]
        # torch from where pip takes everything else on this machine, whichever build of it that is.
        index = settings.get("index-url", _DEFAULT_INDEX)
        arguments = [f"BASE_IMAGE={base}", f"CPU_TORCH_INDEX={index}", f"CUDA_TORCH_INDEX={index}"]
        tools.run(
            *("buildah", "build", "--isolation", "chroot", "--network", "host", "--layers", "--no-cache"),
            *("--secret", f"id=pip.conf,src={config}"),
            *(word for mount in mounts for word in ("--volume", mount)),
            *(word for argument in arguments for word in ("--build-arg", argument)),
            *("--target", target, "--tag", image, "."),
        )
    tools.run("podman", "image", "prune", "--force")


def pip_settings() -> dict[str, str]:
    """What pip is told on this machine, by files and by the environment, which goes first."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    found = re.findall(r"^(global|:env:)\.([\w-]+)=(.*)$", listed.stdout, re.MULTILINE)
    ordered = sorted(found, key=lambda each: each[0] == ":env:")
    return {name: " ".join(str(ast.literal_eval(text)).split()) for _, name, text in ordered}


def local_paths(settings: Mapping[str, str]) -> list[str]:
    """Files and folders of this machine that those settings name; of an index also what its pages lead to."""
    return sorted(set(_local_paths(settings)))


def _local_paths(settings: Mapping[str, str]) -> Iterator[str]:
    for name, text in settings.items():
        for word in text.split():
            address = urlsplit(word)
            if address.scheme in ("", "file") and address.path.startswith("/") and Path(address.path).exists():
                yield str(Path(address.path).parent if "index-url" in name else Path(address.path))


def _ensure_base(tools: Containers, target: str) -> str:
    base = f"{_BASE}:{_DEBIAN}-{target}"
    try:
        tools.run("podman", "image", "exists", base)
    except ContainersError:
        with tempfile.TemporaryDirectory() as scratch:
            tar = f"{scratch}/base.tar"
            tools.run("mmdebstrap", "--variant=minbase", f"--include={_PYTHON[target]}", _DEBIAN, tar)
            tools.run("podman", "import", tar, base)
    return base


def main() -> None:
    """Build it, and say how long that took."""
    began_s = time.monotonic()
    is_cuda = sys.argv[1:] == ["cuda"]
    target, image = ("cuda", CUDA_IMAGE) if is_cuda else ("cpu", IMAGE)
    try:
        with containers() as tools:
            build(tools, target=target, image=image)
    except ContainersError as error:
        sys.exit(str(error))
    print(f"{image} is there after {time.monotonic() - began_s:.0f} s")


if __name__ == "__main__":
    main()
