"""The upload Job of the overlay `dev-cpu`, run as a process: from a hub into an Azurite of its own, and on to the server."""

from __future__ import annotations

import shutil
import signal
import subprocess
import threading

import pytest
from azure.storage.blob import ContainerClient

from streaming.manifest import parse_manifest
from tests.coldstream import Server, wait_for
from tests.containers import container
from tests.hub import SIGNATURE, hub
from tests.manifests import named
from tools.azurite import azurite as run_azurite
from tools.blob_server import Fault
from tools.child import running
from tools.ports import free_port

DEV = "overlays/dev-cpu"
JOB = "Job/coldstream-upload"
TOKEN = "hf_t0ken0fthesecret"
MIB = 1 << 20


class Cluster:
    """Azurite, a hub and the namespace's Secrets; what the overlay says is run beside them."""

    def __init__(self, storage, hub, folder):
        self.storage, self.hub, self.folder = storage, hub, folder
        self.secrets = {}

    def container(self, target, **own):
        """How a pod of the overlay is run here; its volume stays where it is when it is run again."""
        places = {"AZURE_STORAGE_CONNECTION_STRING": self.storage.connection_string, "HF_ENDPOINT": self.hub.url}
        return container(DEV, target, self.folder, {**places, **own}, self.secrets)

    def start_job(self):
        """Run the Job's container. No file may become larger than 1 MiB, not even one without a name."""
        command, environ = self.container(JOB)
        limited = ["prlimit", f"--fsize={MIB}", *command]
        return subprocess.Popen(limited, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run_job(self):
        """Run it to its end: exit code and output."""
        with self.start_job() as process:
            output, _ = process.communicate(timeout=120)
        return process.returncode, output

    def volume_bytes(self):
        """What is in /tmp."""
        return sum(path.stat().st_size for path in (self.folder / "tmp").rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    """The overlay's Azurite: as in a cluster, nobody else writes to it."""
    with run_azurite(tmp_path_factory.mktemp("azurite")) as service:
        yield service


@pytest.fixture
def models(storage):
    """The container that the overlay names; it does not exist yet."""
    with ContainerClient.from_connection_string(storage.connection_string, "models") as client:
        yield client
        client.delete_container()


@pytest.fixture
def cluster(storage, models, tmp_path):
    """One with an empty container and a hub without repositories."""
    with hub(tmp_path / "hub") as running_hub:
        yield Cluster(storage, running_hub, tmp_path / "node")


@pytest.fixture
def repository():
    """The repository that the overlay names."""
    return named(DEV, "ConfigMap", "coldstream")["data"]["HF_REPO"]


def etags(models):
    return {blob.name.rpartition("/")[2]: blob.etag for blob in models.list_blobs()}


def test_the_server_serves_what_the_job_has_pushed(cluster, models, repository, tiny_model):
    """Manifest and all, under the overlay's own names; and the Job, run again, fetches and sends nothing."""
    commit = cluster.hub.commit(repository, tiny_model.folder)
    code, output = cluster.run_job()
    assert code == 0, output
    pushed = etags(models)
    manifest = parse_manifest(models.download_blob("smollm2-135m-instruct/coldstream.json").readall())
    assert manifest.source == f"hf://{repository}@{commit}"
    assert pushed.keys() == {*manifest.files, "coldstream.json"}

    cluster.hub.forget()
    code, output = cluster.run_job()
    assert (code, etags(models), cluster.hub.cdn.requests) == (0, pushed, [])
    assert f"pushed 0 files (0 bytes) to az://models/smollm2-135m-instruct, {len(manifest.files)} were there" in output

    port, log_path = free_port(), cluster.folder / "log"
    command, environ = cluster.container("Deployment/coldstream", COLDSTREAM_PORT=str(port))
    with running(command, log_path=log_path, env=environ, grace_s=10) as process:
        server = Server(process.pid, port, log_path)
        with server.client:
            server.wait_ready()
            answer = server.complete(tiny_model.prompt_token_ids, model="smollm2-135m-instruct", max_tokens=1)
        assert ", 0 unverified" in server.log()
    assert answer["choices"][0]["text"] == tiny_model.continuation()


def test_a_job_that_is_killed_goes_on_and_needs_no_disk(cluster, models, repository, small_model):
    """SIGKILL halfway, and another pod with a volume of its own: files that were whole are not fetched again."""
    job = named(DEV, "Job", "coldstream-upload")["spec"]
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    assert job["backoffLimit"] > 0
    first, second = sorted(path.name for path in small_model.folder.glob("*.safetensors"))
    assert (small_model.folder / second).stat().st_size > 10 * MIB
    cluster.hub.commit(repository, small_model.folder)
    healed = threading.Event()

    def stall(request):
        # Some of it comes, then nothing.
        is_stalled = request.path.endswith(second) and not healed.is_set()
        return Fault(cut_after_bytes=MIB, stalls_s=60) if is_stalled else None

    cluster.hub.cdn.hook = stall
    with cluster.start_job() as process:
        try:
            wait_for(lambda: models.exists() and {first, "coldstream.partial.json"} <= etags(models).keys(), 60)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not {second, "coldstream.json"} & etags(models).keys()
    assert cluster.volume_bytes() < MIB

    healed.set()
    shutil.rmtree(cluster.folder)
    whole = etags(models)[first]
    cluster.hub.forget()
    code, output = cluster.run_job()
    assert code == 0, output
    assert (etags(models)[first], cluster.hub.fetched(first)) == (whole, 0)
    assert cluster.hub.fetched(second) == (small_model.folder / second).stat().st_size
    manifest = parse_manifest(models.download_blob("smollm2-135m-instruct/coldstream.json").readall())
    assert {first, second} <= manifest.files.keys()
    assert cluster.volume_bytes() < MIB


def test_the_hubs_token_is_that_of_the_secret(cluster, repository, tiny_model):
    """Without the Secret a gated repository is refused, with it the Job is done; no output has the token."""
    cluster.hub.commit(repository, tiny_model.folder)
    cluster.hub.repositories[repository].token = TOKEN
    assert "HF_TOKEN" not in cluster.container(JOB).environ
    code, refused = cluster.run_job()
    assert code == 3
    assert "accept its licence" in refused

    cluster.secrets = {"hugging-face": {"token": TOKEN}}
    command, environ = cluster.container(JOB)
    assert environ["HF_TOKEN"] == TOKEN
    assert TOKEN not in " ".join(command)
    code, output = cluster.run_job()
    assert code == 0, output
    assert not any(secret in refused + output for secret in (TOKEN, SIGNATURE))
