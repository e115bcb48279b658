"""A repository of two shards on the hub, what its host does wrong, and what a container holds once it was pushed.

Takes containers and folders; knows neither hub nor process but by their names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from azure.storage.blob import ContainerClient

from streaming.manifest import Manifest, parse_manifest
from tests.forked_command import coldstream
from tools.blob_server import BlobRequest, Fault

REPO = "org/tiny-model"
TOKEN = "hf_s3cr3ttoken"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
SMALL = ("config.json", "model.safetensors.index.json", "special_tokens_map.json", "tokenizer.json")
PUSHED = sorted((*SHARDS, *SMALL))
MIB = 1 << 20


@dataclass
class Faults:
    """What the host of large files does, by a function that a test sets."""

    play: Callable[[BlobRequest], Fault | None] = lambda _: None

    def __call__(self, request: BlobRequest) -> Fault | None:
        """As a hook."""
        return self.play(request)


@dataclass
class Once:
    """Play a fault at the first request for a shard that begins at a byte, and keep where the requests for it began."""

    name: str
    fault: Fault
    times: int = 1

    def __post_init__(self) -> None:
        self.starts: list[int] = []

    def __call__(self, request: BlobRequest) -> Fault | None:
        """As a hook."""
        if not request.path.endswith(f"/{self.name}"):
            return None
        self.starts.append(request.start)
        return self.fault if len(self.starts) <= self.times else None


def uri_of(container: ContainerClient) -> str:
    return f"az://{container.container_name}/llm"


def pushed(container: ContainerClient, environ: dict[str, str], *flags: str, source: str = REPO) -> str:
    """Push it; gives what was said."""
    done = coldstream("push", source, uri_of(container), *flags, environ=environ)
    assert done.returncode == 0, done.stderr
    return done.stdout


def blobs(container: ContainerClient) -> dict[str, bytes]:
    """Every blob, by its name under the prefix."""
    names = [name.removeprefix("llm/") for name in container.list_blob_names()]
    return {name: container.download_blob(f"llm/{name}").readall() for name in names}


def etags_of(container: ContainerClient) -> dict[str, str]:
    return {blob.name.removeprefix("llm/"): blob.etag for blob in container.list_blobs()}


def manifest_of(container: ContainerClient) -> Manifest:
    return parse_manifest(blobs(container)["coldstream.json"])


def digests_of(manifest: Manifest) -> dict[str, tuple[str, int, str, bytes]]:
    files = manifest.files.items()
    return {name: (file.sha256, file.data_start, file.header_sha256, file.crc64nvme) for name, file in files}


def check_whole(container: ContainerClient, folder: Path) -> None:
    """The container holds what of this folder serves, and says so."""
    found = blobs(container)
    manifest = parse_manifest(found.pop("coldstream.json"))
    assert found == {name: (folder / name).read_bytes() for name in PUSHED}
    etags = etags_of(container)
    assert {name: file.etag for name, file in manifest.files.items()} == {n: etags[n].strip('"') for n in PUSHED}
