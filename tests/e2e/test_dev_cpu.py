"""The pods of the overlay `dev-cpu`, run as processes: their command lines and variables, and nothing of this machine's."""

from __future__ import annotations

import subprocess

import pytest

from tests.coldstream import Server
from tests.containers import container
from tools.child import running
from tools.ports import free_port

DEV = "overlays/dev-cpu"


@pytest.fixture
def pod(azurite, pushed_demo, tmp_path):
    """How a pod of the overlay is run, with Azurite's address of this machine."""

    def of(target, **own):
        connection = {"AZURE_STORAGE_CONNECTION_STRING": azurite.connection_string}
        found = container(DEV, target, tmp_path, connection | own)
        assert found.environ["COLDSTREAM_MODEL"] == pushed_demo
        return found

    return of


def test_preflight_finds_that_the_server_would_work(pod):
    """Exit code 0, and the verdict for the model that was pushed."""
    command, environ = pod("Job/coldstream-preflight")
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("az://models/smollm2-135m-instruct would be served here\n")


def test_the_server_serves_the_model(pod, tmp_path):
    """Named after its prefix, since nobody said otherwise."""
    port, log_path = free_port(), tmp_path / "log"
    command, environ = pod("Deployment/coldstream", COLDSTREAM_PORT=str(port))
    with running(command, log_path=log_path, env=environ, grace_s=10) as process:
        server = Server(process.pid, port, log_path)
        with server.client:
            server.wait_ready()
            assert [each["id"] for each in server.client.get("/v1/models").json()["data"]] == ["smollm2-135m-instruct"]
            answer = server.complete("The capital of France is", model="smollm2-135m-instruct", max_tokens=1)
    assert answer["choices"][0]["text"] == " Paris"
    assert process.returncode == 0
