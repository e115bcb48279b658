"""What a load met on its way, as the server tells it."""

from __future__ import annotations

import threading
from pathlib import Path

from app.telemetry import names
from tests.coldstream import Server, runs, serving, wait_for
from tests.unit.test_metrics import samples
from tools.blob_server import BlobRequest, BlobServer, Fault
from tools.random_checkpoint import write_checkpoint


def retries(server: Server) -> dict[str, float]:
    """Counts by label."""
    return samples(server.client.get("/metrics").text).get(names.RETRIES.name, {})


def test_retries_are_told_while_the_load_goes_on_and_over_a_restart(tmp_path: Path) -> None:
    """The metadata's 503 shows before any weight has come; a cut body of the next loader's is added to it."""
    write_checkpoint(tmp_path / "tiny", "tiny", shards=4)
    faults = {"config.json": Fault(status=503), "model-00003-of-00004.safetensors": Fault(cut_after_bytes=100)}
    killed = threading.Event()

    def hook(request: BlobRequest) -> Fault | None:
        is_weight = request.path.endswith(".safetensors") and request.start > 0
        if is_weight and not killed.is_set():
            killed.wait(60)
            return None  # who asked is dead
        name = request.path.lstrip("/")
        return faults.pop(name, None) if is_weight or name == "config.json" else None

    with (
        BlobServer(tmp_path / "tiny", hook=hook) as source,
        serving(source.url, log_path=tmp_path / "log") as server,
    ):
        wait_for(server.state)
        wait_for(lambda: retries(server) == {"cause=503": 1})
        (loader,) = [child for child in server.family() if runs(child, "streaming")]
        loader.kill()
        killed.set()
        server.wait_ready()
        assert retries(server) == {"cause=503": 1, "cause=truncated": 1}
