"""A pod's service account is all that it has: its token becomes one of Entra ID, and that one reads and writes blobs."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from app.settings import parse
from streaming.identity import Identity
from streaming.options import HOST_STAGING
from tests.coldstream import ROOT, serving, wait_for
from tests.e2e.test_refusals import coldstream
from tests.e2e.virtual_machine import USER_ASSIGNED
from tests.loader import as_stored, load
from tests.pod_identity import managed_identity

SCOPE = "https://storage.azure.com/.default"
URI = "az://models/tiny"
CPU = ("--device", "cpu", "--log-level", "debug")


@pytest.fixture
def pushed(tiny_model, upload_pod, storage_environment):
    """The tiny model in the container; what the push said, if anything was left to push."""
    environ = storage_environment | upload_pod.variables()
    return coldstream("push", str(tiny_model.folder), URI, "--log-level", "debug", environ=environ)


def check_untold(entra, *texts):
    """No assertion, no access token, and nobody's signature."""
    secrets = entra.secrets()
    assert secrets
    assert [secret for secret in secrets for text in texts if secret in text] == []


def test_the_jobs_service_account_pushes_and_the_servers_serves(
    pushed, entra, server_pod, storage_environment, tiny_model, tmp_path
):
    """Each with the names of its own manifest: variables of the webhook, a token of the kubelet, and no other credential."""
    assert pushed.returncode == 0, pushed.stderr
    environ = storage_environment | server_pod.variables()
    with serving(URI, *CPU, log_path=tmp_path / "log", environ=environ) as server:
        server.wait_ready()
        said = server.complete(tiny_model.prompt_token_ids, max_tokens=1)
    assert said["choices"][0]["text"] == tiny_model.continuation()
    assert {each.status for each in entra.exchanges} == {200}
    subjects = {str(entra.cluster.claims(each.assertion)["sub"]) for each in entra.exchanges}
    assert subjects == {f"system:serviceaccount:coldstream:{name}" for name in ("coldstream", "coldstream-uploader")}
    check_untold(entra, pushed.stdout, pushed.stderr, server.log())


@pytest.mark.parametrize("credential", ["managed-identity", "default"])
def test_other_identities_serve_as_well(
    pushed, entra, server_pod, storage_environment, tiny_model, tmp_path, credential
):
    """A machine's own, and what DefaultAzureCredential finds in a pod."""
    assert pushed.returncode == 0, pushed.stderr
    with managed_identity(entra, server_pod.client_id) as machine:
        found = server_pod.variables() | {"COLDSTREAM_AZURE_CREDENTIAL": "default"}
        environ = storage_environment | (machine if credential == "managed-identity" else found)
        with serving(URI, *CPU, log_path=tmp_path / "log", environ=environ) as server:
            server.wait_ready()
            said = server.complete(tiny_model.prompt_token_ids, max_tokens=1)
    assert said["choices"][0]["text"] == tiny_model.continuation()
    check_untold(entra, server.log())


def test_a_virtual_machines_identities_push_and_serve(tiny_model, tmp_path):
    """Of the metadata service at 169.254.169.254, in a network where nothing else is: its own, and one by its client id."""
    script = [sys.executable, "-m", "tests.e2e.virtual_machine", str(tiny_model.folder)]
    command = ["unshare", "--net", "--map-root-user", *script, json.dumps(tiny_model.prompt_token_ids), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["push"][0] == 0, found["push"]
    assert found["text"] == tiny_model.continuation()
    assert found["asked"] == [[""], [USER_ASSIGNED]]
    assert found["told"] == []


def test_a_load_goes_on_with_the_token_that_the_kubelet_has_renewed(
    pushed, entra, server_pod, storage_environment, private_ca, tiny_model
):
    """Between metadata and weights the access token ends, and so does the pod's: the file's new content is exchanged."""
    assert pushed.returncode == 0, pushed.stderr
    entra.exchanges.clear()
    entra.lifetime_s = 2
    first = server_pod.project(lifetime_s=60)
    renewed: list[str] = []

    def layout(described):
        assert {each.assertion for each in entra.exchanges} == {first}
        renewed.append(server_pod.project())
        entra.lifetime_s = 3600
        time.sleep(3.1)  # until storage would refuse the token that the loader has: its time has whole seconds
        return as_stored(described)

    source = options(storage_environment | server_pod.variables())
    ended = load(URI, source=source, environ=private_ca.trusted, layout=layout)
    assert ended.error is None
    assert ended.report is not None
    assert {each.assertion for each in entra.exchanges} == {first, *renewed}
    assert entra.exchanges[-1].assertion == renewed[0]


def test_host_staging_takes_tokens_too(pushed, server_pod, storage_environment, private_ca):
    """Its metadata come by obstore and its weights by Azure's client, each with a token of its own."""
    assert pushed.returncode == 0, pushed.stderr
    source = options(storage_environment | server_pod.variables())
    ended = load(URI, strategy=HOST_STAGING, source=source, environ=private_ca.trusted)
    assert ended.error is None
    assert len(ended.staged) == 2


def test_a_push_outlives_an_outage_of_who_gives_tokens(tiny_model, upload_pod, entra, storage_environment):
    """It is asked again after a 500 and a 502, as storage would be."""
    entra.outages += [500, 502]
    environ = storage_environment | upload_pod.variables()
    done = coldstream("push", str(tiny_model.folder), "az://models/outages", environ=environ)
    assert done.returncode == 0, done.stderr
    assert [each.status for each in entra.exchanges] == [500, 502, 200]
    check_untold(entra, done.stdout, done.stderr)


def test_a_push_goes_on_with_the_token_that_the_kubelet_has_renewed(upload_pod, entra, private_ca, monkeypatch):
    """What Azure's client holds is kept while it is good; then the file is read anew."""
    for name, value in private_ca.trusted.items():
        monkeypatch.setenv(name, value)
    entra.lifetime_s = 3
    identity = Identity("workload-identity", options(upload_pod.variables()))
    first = identity.get_token(SCOPE)
    assert identity.get_token(SCOPE) == first
    renewed = upload_pod.project()
    wait_for(lambda: time.time() >= first.expires_on)
    assert identity.get_token(SCOPE).token != first.token
    assert [each.assertion == renewed for each in entra.exchanges] == [False, True]


def options(environ):
    """What `streaming` is told with these variables."""
    return parse(["preflight", URI], environ).settings.storage.source_options()
