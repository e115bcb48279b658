"""The client in docs/api.md, as it stands."""

from __future__ import annotations

import subprocess
import sys
import threading

import httpx

from tests.coldstream import serving, wait_for
from tests.documents.pages import texts
from tools.blob_server import BlobServer


def test_the_documented_client_waits_for_the_model(demo_model_dir, tmp_path):
    """Asked while the weights are held back, it prints the answer once they come; but for the port, it is what a reader pastes."""
    (program,) = texts("docs/api.md", "Before the model is ready", "python")
    may_go_on = threading.Event()

    def hold(request):
        if request.path.endswith(".safetensors") and request.start > 0:
            may_go_on.wait(60)

    with (
        BlobServer(demo_model_dir, hook=hold) as source,
        serving(source.url, "--served-model-name", "my-model", log_path=tmp_path / "log") as server,
    ):

        def held():
            try:
                return "coldstream_requests_held 1.0\n" in server.client.get("/metrics").text
            except httpx.TransportError:
                return False

        server.reach("loading")
        words = [sys.executable, "-c", program.replace("http://127.0.0.1:8000", server.url)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as client:
            wait_for(held)
            may_go_on.set()
            output, errors = client.communicate(timeout=60)
    assert (client.returncode, errors) == (0, "")
    assert "Paris" in output
