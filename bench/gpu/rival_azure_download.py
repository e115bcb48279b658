"""The official Azure client to a local disk, then transformers: `python -m bench.gpu.rival_azure_download URL CONTAINER PREFIX DIR DEVICE`.

All blobs at once, each in a process of its own (one interpreter gives 0.5 GB/s at most), each by ranged reads
in parallel, which is what the client's `max_concurrency` is for.
"""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path

from bench.gpu.marks import Marks
from bench.gpu.rival_from_pretrained import load_and_answer

# The fastest of five combinations in one process, on two cores.
_READS_PER_BLOB = 4
_CHUNK_BYTES = 16 << 20


def download(account_url: str, container: str, prefix: str, folder: Path) -> None:
    """Every file that the folder's listing names, from below `prefix`."""
    names = (folder / "listing.txt").read_text().split()
    with multiprocessing.get_context("fork").Pool(len(names)) as pool:
        pool.starmap(fetch, [(account_url, container, prefix, name, folder) for name in names], chunksize=1)


def fetch(account_url: str, container: str, prefix: str, name: str, folder: Path) -> None:
    """One blob into a file."""
    from azure.storage.blob import BlobClient

    blob = BlobClient(
        account_url,
        container,
        f"{prefix}/{name}",
        max_single_get_size=_CHUNK_BYTES,
        max_chunk_get_size=_CHUNK_BYTES,
    )
    with blob, (folder / name).open("wb") as file:
        blob.download_blob(max_concurrency=_READS_PER_BLOB).readinto(file)


def main(account_url: str, container: str, prefix: str, folder: str, device: str) -> None:
    """Download, then load what was downloaded."""
    marks = Marks()
    # Imported before the processes are forked, so that it is paid for once.
    import azure.storage.blob  # noqa: F401

    marks.phase("import client")
    download(account_url, container, prefix, Path(folder))
    marks.phase("download")
    load_and_answer(marks, folder, device)


if __name__ == "__main__":
    main(*sys.argv[1:])
