"""Who starts cold, and how each is run: ours over HTTP and HTTPS, and its rivals from the same object store.

Takes where everything lies, gives one function per contender. Knows no order and no statistics.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu import gpu
from bench.gpu.ours import serve_once
from bench.gpu.processes import ContenderFailed, run_rival
from tools.nginx import SYSTEM_CA_FILE, Nginx

Measurement = dict[str, Any]

OURS_HTTP = "coldstream, HTTP"
OURS_HTTPS = "coldstream, HTTPS"
IMPORT_TORCH = "import torch, nothing else"
RUNAI = "Run:ai streamer + transformers, HTTPS"
FROM_PRETRAINED = "transformers from_pretrained, tmpfs"
AZURE_DOWNLOAD = "Azure client to disk, HTTP, + from_pretrained"
TENSORIZER = "tensorizer + transformers, HTTP"


@dataclass(frozen=True)
class Place:
    """Where one run finds everything; `served_dir` is the server's root, with the checkpoint in `models/NAME`."""

    served_dir: Path
    model: str
    disk_dir: Path
    log_dir: Path
    server: Nginx
    device: str
    prompt: tuple[int, ...]
    planted_token_id: int
    ours_flags: tuple[str, ...] = ()
    runai_concurrency: int = 32
    tensorizer_readers: int = 8

    @property
    def checkpoint(self) -> Path:
        """The folder that is served."""
        return self.served_dir / "models" / self.model

    @property
    def torch_device(self) -> str:
        """The device as torch's users name it."""
        return "cuda:0" if self.device == "cuda" else self.device


@dataclass(frozen=True)
class Contender:
    """One that starts cold, and which of ours it is compared with; the slow ones run fewer rounds."""

    name: str
    run: Callable[[], Measurement]
    beside: str = OURS_HTTP
    is_slow: bool = False


def all_contenders(place: Place) -> list[Contender]:
    """Everyone, in the order of the first round."""
    return [
        Contender(OURS_HTTP, lambda: _ours(place, place.server.plain_url)),
        Contender(RUNAI, lambda: _runai(place), beside=OURS_HTTPS),
        Contender(IMPORT_TORCH, lambda: _rival(place, "rival_import_torch")),
        Contender(OURS_HTTPS, lambda: _ours(place, place.server.tls_url), beside=OURS_HTTPS),
        Contender(FROM_PRETRAINED, lambda: _from_pretrained(place), is_slow=True),
        Contender(TENSORIZER, lambda: _tensorizer(place), is_slow=True),
        Contender(AZURE_DOWNLOAD, lambda: _azure_download(place), is_slow=True),
    ]


def _ours(place: Place, url: str) -> Measurement:
    return serve_once(
        f"{url}/models/{place.model}",
        ["--device", place.device, *place.ours_flags],
        checkpoint=place.checkpoint,
        prompt=place.prompt,
        log_path=place.log_dir / "coldstream.log",
        env={**os.environ, "SSL_CERT_FILE": str(place.server.bundle_file)},
        look=lambda: _look(place),
    )


def _rival(place: Place, script: str, *arguments: object, env: dict[str, str] | None = None) -> Measurement:
    # Nobody may lose time by asking a model hub that cannot be reached.
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return run_rival(
        f"bench.gpu.{script}",
        *map(str, arguments),
        log_path=place.log_dir / f"{script}.log",
        env={**os.environ, **offline, **(env or {})},
        look=lambda: _look(place),
    )


def _look(place: Place) -> Measurement:
    """What is seen while a contender still lives."""
    return {"gpu_mib": gpu.used_mib()} if place.device == "cuda" else {}


def _from_pretrained(place: Place) -> Measurement:
    return _rival(place, "rival_from_pretrained", place.checkpoint, place.torch_device)


def _runai(place: Place) -> Measurement:
    if not SYSTEM_CA_FILE.is_file() or place.server.ca_file.read_text() not in SYSTEM_CA_FILE.read_text():
        # Its client reads that file alone.
        raise ContenderFailed(f"Run:ai needs the server's CA in {SYSTEM_CA_FILE}: --trust-ca, on a disposable machine")
    # The first is documented, the second is what its object stores heed.
    names = ("RUNAI_STREAMER_CONCURRENCY", "RUNAI_STREAMER_OBJ_CONCURRENCY")
    concurrency = dict.fromkeys(names, str(place.runai_concurrency))
    return _rival(
        place,
        "rival_runai",
        place.checkpoint,
        f"az://models/{place.model}",
        place.torch_device,
        env={**place.server.azure_environment(), **concurrency},
    )


def _tensorizer(place: Place) -> Measurement:
    file = place.served_dir / "tensorizer" / f"{place.model}.tensors"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        _prepare(place, "serialize_tensorizer", place.checkpoint, file, place.torch_device)
    url = f"{place.server.plain_url}/tensorizer/{file.name}"
    return _rival(place, "rival_tensorizer", place.checkpoint, url, place.torch_device, place.tensorizer_readers)


def _prepare(place: Place, script: str, *arguments: object) -> None:
    """Run what is not timed."""
    log_path = place.log_dir / f"{script}.log"
    with log_path.open("wb") as log:
        done = subprocess.run(
            [sys.executable, "-m", f"bench.gpu.{script}", *map(str, arguments)], stdout=log, stderr=log, check=False
        )
    if done.returncode:
        raise ContenderFailed(f"{script} failed, see {log_path}")


def _azure_download(place: Place) -> Measurement:
    folder = place.disk_dir / "downloaded"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "listing.txt").write_text("\n".join(_file_names(place.checkpoint)))
    try:
        url = place.server.azure_plain_url
        return _rival(place, "rival_azure_download", url, "models", place.model, folder, place.torch_device)
    finally:
        shutil.rmtree(folder)


def _file_names(folder: Path) -> Sequence[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())
