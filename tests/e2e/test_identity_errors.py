"""What a pod's identity may lack: one line each, the same for every command, at once, and without a letter of a token."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.preflight.finding import FAILED
from app.settings import parse
from streaming.errors import SourceError
from streaming.upload import push
from tests.coldstream import serving, wait_for
from tests.e2e.test_refusals import coldstream, serve
from tests.entra import TENANT, Entra
from tests.integration.test_preflight import checks
from tests.loader import load
from tests.private_ca import https_server, make_private_ca, send
from tools.ports import free_port

URI = "az://models/tiny"
FORBIDDEN = (
    b'<?xml version="1.0" encoding="utf-8"?><Error><Code>AuthorizationPermissionMismatch</Code><Message>This request is not '
    b"authorized to perform this operation using this permission.\nRequestId:5b0a1c3d-901e-0042-7d6c-0123456789ab\n"
    b"Time:2026-01-01T00:00:00.0000000Z</Message></Error>"
)
INJECT = (
    'label the pod template azure.workload.identity/use="true", give its service account the annotation '
    "azure.workload.identity/client-id, and start the pod again"
)
UNREACHED = "check AZURE_AUTHORITY_HOST, and what lies between (DNS, network policy, firewall, proxy)"
REFUSALS = {
    "audience": (
        {"audience": "https://kubernetes.default.svc"},
        {},
        "refused the identity a token (401 AADSTS700212): the token's audience is https://kubernetes.default.svc, the federated "
        "credential of client server-client-id wants another (api://AzureADTokenExchange, unless it was made otherwise)",
        "give the pod's projected token that audience, as the workload identity webhook does",
    ),
    "subject": (
        {"subject": "system:serviceaccount:default:default"},
        {},
        "refused the identity a token (401 AADSTS700213): the token's subject is system:serviceaccount:default:default, no "
        "federated credential of client server-client-id names it",
        "make one for this service account, or run the pod with the one that is named (upper and lower case count)",
    ),
    "issuer": (
        {"issuer": "https://oidc.example.net/another/"},
        {},
        "refused the identity a token (401 AADSTS700211): the token's issuer is https://oidc.example.net/another/, no federated "
        "credential of client server-client-id names it",
        "give the federated credential this cluster's issuer (az aks show --query oidcIssuerProfile.issuerUrl)",
    ),
    "expired": (
        {"lifetime_s": -60},
        {},
        r"refused the identity a token (401 AADSTS700024): the token in FILE ended at TIME",
        "start the pod again, and look why its kubelet did not renew the file",
    ),
    "client": (
        {},
        {"AZURE_CLIENT_ID": "its-object-id"},
        f"refused the identity a token (400 AADSTS700016): client its-object-id is unknown in tenant {TENANT}",
        "set AZURE_CLIENT_ID to the identity's client id (az identity show --query clientId), in a cluster by the service account's "
        "annotation azure.workload.identity/client-id",
    ),
    "tenant": (
        {},
        {"AZURE_TENANT_ID": "another"},
        "refused the identity a token (400 AADSTS90002): tenant another is unknown there",
        "check AZURE_TENANT_ID and AZURE_AUTHORITY_HOST",
    ),
}


@pytest.fixture
def run_all(tiny_model, tmp_path):
    """Every command with these variables, at once; what each ended with, and the termination message of `serve`."""
    last_words = tmp_path / "termination-log"
    last_words.touch()

    def run(environ):
        quick = {"COLDSTREAM_MAX_RETRIES": "1"} | environ
        own = {"COLDSTREAM_TERMINATION_LOG": str(last_words)}  # or push would write over it
        with ThreadPoolExecutor(3) as pool:
            serves = pool.submit(serve, URI, "--device", "cpu", environ=quick | own)
            pushes = pool.submit(coldstream, "push", str(tiny_model.folder), URI, environ=quick)
            looks = pool.submit(coldstream, "preflight", URI, "--device", "cpu", "--json", environ=quick)
            return serves.result(), pushes.result(), looks.result(), last_words.read_text()

    return run


@pytest.fixture
def tell_all(entra, tiny_model, monkeypatch):
    """Check what the loader, push and preflight say with these variables: the same line, once, and no secret."""

    def check(environ, kind, line, attempts=1):
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        words = (f"--max-retries={attempts - 1 if attempts > 1 else 8}",)
        source = parse(["preflight", URI, *words], environ).settings.storage.source_options()
        with ThreadPoolExecutor() as pool:
            loads = pool.submit(load, URI, source=source)
            with pytest.raises(SourceError) as pushed:
                push(tiny_model.folder, URI, source, quiet=True)
            (failed,) = [each for each in checks(URI, *words, environ=environ).values() if each.status == FAILED]
            loaded = loads.result().error
        assert loaded is not None
        assert (loaded.kind, type(pushed.value).__name__, loaded.exit_code, failed.exit_code) == (kind, kind, 3, 3)
        tried = rf" \({attempts} attempts in \S+ s, the last: \w+\)" if attempts > 1 else ""
        assert re.fullmatch(re.escape(line) + tried, loaded.message)
        assert re.fullmatch(re.escape(line) + tried, str(pushed.value))
        found, _, remedy = line.rpartition(": ")
        assert re.fullmatch(f"{re.escape(found)}({tried})?", failed.detail)  # it connects once before anything is read
        assert failed.action == remedy
        check_untold(entra, loaded.message, str(pushed.value), failed.detail)

    return check


def check_untold(entra, *texts):
    """No assertion, no access token, and nobody's signature."""
    assert [secret for secret in entra.secrets() for text in texts if secret in text] == []
    assert "Traceback" not in "".join(texts)


@pytest.mark.parametrize("case", REFUSALS)
def test_entra_refuses_the_pod(entra, server_pod, storage_environment, tell_all, case):
    """Its code, what the token or the variable says, and what to correct; nobody asks twice."""
    how, variables, found, remedy = REFUSALS[case]
    token = server_pod.project(**how)
    ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(float(str(entra.cluster.claims(token)["exp"]))))
    found = found.replace("FILE", str(server_pod.token_file)).replace("TIME", ends)
    authority = entra.url.removeprefix("https://").rstrip("/")
    line = f"Entra ID at {authority} {found}: {remedy}"
    tell_all(storage_environment | server_pod.variables() | variables, "TokenRefused", line)
    assert {each.assertion for each in entra.exchanges} == {token}


def test_entra_refuses_what_the_default_credential_found(entra, server_pod, storage_environment, tell_all):
    """Its chain ends with the identity that was there, and its paragraph becomes the same line."""
    how, _, found, remedy = REFUSALS["audience"]
    server_pod.project(**how)
    authority = entra.url.removeprefix("https://").rstrip("/")
    line = f"Entra ID at {authority} {found}: {remedy}".replace("(401 ", "(")
    default = {"COLDSTREAM_AZURE_CREDENTIAL": "default"}
    tell_all(storage_environment | server_pod.variables() | default, "TokenRefused", line)


def test_a_variable_is_missing(entra, server_pod, storage_environment, tell_all):
    """The pod has its token and nobody is asked: its service account lacks the annotation."""
    found = "workload identity is half there: AZURE_TENANT_ID and AZURE_FEDERATED_TOKEN_FILE set, but AZURE_CLIENT_ID is not set"
    tell_all(
        storage_environment | server_pod.variables() | {"AZURE_CLIENT_ID": ""}, "AccessDenied", f"{found}: {INJECT}"
    )
    assert entra.exchanges == []


def test_the_token_file_is_missing(entra, server_pod, storage_environment, tell_all):
    """The variables are there and the volume is not."""
    server_pod.token_file.unlink()
    found = f"AZURE_FEDERATED_TOKEN_FILE={server_pod.token_file} is not there"
    tell_all(storage_environment | server_pod.variables(), "AccessDenied", f"{found}: {INJECT}")
    assert entra.exchanges == []


@pytest.mark.parametrize(("outage", "what"), [("refused", "Connection refused"), ("500", "it answered 500")])
def test_nobody_gives_tokens(entra, server_pod, storage_environment, tell_all, outage, what):
    """The authority is named and not the storage account, after it was tried again."""
    variables, authority = server_pod.variables(), entra.url.removeprefix("https://").rstrip("/")
    if outage == "refused":
        authority = f"127.0.0.1:{free_port()}"
        variables["AZURE_AUTHORITY_HOST"] = f"https://{authority}/"
    entra.outages += [500] * 200
    line = f"the identity got no token from Entra ID at {authority}: {what}: {UNREACHED}"
    tell_all(storage_environment | variables, "TokenUnavailable", line, attempts=2)


def test_somebody_else_answers_for_who_gives_tokens(entra, server_pod, storage_environment, tell_all):
    """A page with status 200, as a proxy asks for a password: that is no token, and nobody asks twice."""
    entra.outages += [200] * 200
    authority = entra.url.removeprefix("https://").rstrip("/")
    line = f"the identity got no token from Entra ID at {authority}: its answer cannot be read: {UNREACHED}"
    tell_all(storage_environment | server_pod.variables(), "TokenUnavailable", line)


def test_who_gives_tokens_cannot_be_believed(entra, server_pod, storage_environment, tell_all, tmp_path):
    """A certificate of another authority: no token is given away, and nobody asks twice."""
    with Entra(entra.cluster, entra.clients).serving(make_private_ca(tmp_path)) as stranger:
        line = (
            f"the identity got no token from Entra ID at {stranger.url[8:-1]}: its certificate is not trusted: have SSL_CERT_FILE "
            "name a bundle that holds its authority, and REQUESTS_CA_BUNDLE for push and host-staging"
        )
        variables = server_pod.variables() | {"AZURE_AUTHORITY_HOST": stranger.url}
        tell_all(storage_environment | variables, "TokenUnavailable", line)
    assert stranger.exchanges == []


def test_whole_commands_end_with_it(entra, server_pod, storage_environment, run_all):
    """Exit code 3, one line on standard error, in the termination message and beside preflight's check."""
    server_pod.project(audience="another")
    serves, pushes, looks, last_words = run_all(storage_environment | server_pod.variables())
    said = [done.stdout + done.stderr for done in (serves, pushes, looks)]
    assert [done.returncode for done in (serves, pushes, looks)] == [3, 3, 3], said
    (logged,) = [each["message"] for each in map(json.loads, serves.stderr.splitlines()) if each["level"] == "ERROR"]
    (told,) = [line for line in pushes.stderr.splitlines() if line.startswith("coldstream: ")]
    line = told.removeprefix("coldstream: ")
    assert "(401 AADSTS700212): the token's audience is another" in line
    assert logged == last_words.strip() == f"TokenRefused: {line}"
    (failed,) = [check for check in json.loads(looks.stdout)["checks"] if check["status"] == "failed"]
    assert f"{failed['detail']}: {failed['action']}" == line
    check_untold(entra, *said, last_words)


def test_the_role_is_missing(entra, server_pod, storage_environment, private_ca, run_all):
    """Storage's own word for it, and which role it takes to read and to push."""
    with https_server(private_ca, forbid) as url:
        environ = storage_environment | server_pod.variables() | {"AZURE_STORAGE_BLOB_ENDPOINT": f"{url}/account"}
        serves, pushes, looks, last_words = run_all(environ)
    said = [done.stdout + done.stderr for done in (serves, pushes, looks)]
    assert [done.returncode for done in (serves, pushes, looks)] == [3, 3, 3], said
    assert re.fullmatch(
        r"AccessDenied: az://models/tiny/[\w.]+: access denied \(403 AuthorizationPermissionMismatch\): the credential needs the "
        r"role Storage Blob Data Reader, which counts minutes after it was assigned \(request id 5b0a1c3d-\S+\) "
        r"\(2 attempts in \S+ s, the last: 403\)\n?",
        last_words,
    )
    assert pushes.stderr == (
        "coldstream: az://models/tiny: access denied (AuthorizationPermissionMismatch): push needs a credential that may list, "
        "read, create and write there (Storage Blob Data Contributor)\n"
    )
    (failed,) = [check for check in json.loads(looks.stdout)["checks"] if check["status"] == "failed"]
    assert "give the identity the role Storage Blob Data Reader" in failed["action"]
    check_untold(entra, *said, last_words)


def forbid(handler):
    """Storage, for whom everybody lacks a role, and nobody is without a token."""
    handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
    has_token = handler.headers.get("Authorization", "").startswith("Bearer ey")
    code = "AuthorizationPermissionMismatch" if has_token else "NoAuthenticationInformation"
    body = FORBIDDEN.replace(b"AuthorizationPermissionMismatch", code.encode())
    send(handler, 403 if has_token else 401, body, "application/xml", **{"x-ms-error-code": code})


def test_a_failure_that_lingers_is_told_by_health(entra, server_pod, storage_environment, tmp_path):
    """/health has the line while the server waits to be looked at."""
    server_pod.project(audience="another")
    environ = storage_environment | server_pod.variables()
    flags = ("--device", "cpu", "--fail-linger", "20")
    with serving(URI, *flags, log_path=tmp_path / "log", environ=environ) as server:
        wait_for(lambda: server.state() == "failed")
        status, body = server.health()
    assert status == 503
    assert "401 AADSTS700212): the token's audience is another" in json.dumps(body, ensure_ascii=False)
    check_untold(entra, json.dumps(body), server.log())
