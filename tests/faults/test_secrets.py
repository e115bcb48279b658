"""No secret, wherever a user has put it, is in anything that comes out."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime, timedelta
from itertools import cycle, product
from urllib.parse import parse_qs, quote, quote_plus, unquote

import pytest
from azure.storage.blob import generate_container_sas

from app.api.server import ApiOptions
from app.settings import parse
from streaming.messages import LoadRequest, Origin
from streaming.options import DIRECT_GPU, AzureOptions, DestinationOptions, PipelineOptions, SourceOptions
from streaming.upload import push
from tests.coldstream import serving, wait_for
from tests.collector import sink
from tests.faults.faults import Cut, Echo, Fault, Redirect, Refusal, Reset
from tests.faults.schedules import Plan, Rule
from tests.forked_command import coldstream
from tests.integration.test_preflight import http_server
from tools.azurite import ACCOUNT_KEY, ACCOUNT_NAME
from tools.ports import free_port

# A word that nothing else contains; the key is base64, as the service wants it.
MARK = "s3cr3t"
KEY = "czNjcjN0/czNjcjN0+czNjcjNg=="
SAS = f"sv=2023-11-03&sr=c&sp=rl&sig={MARK}%2Bsignature%3D"
CONNECTION = f"DefaultEndpointsProtocol=http;AccountName=account;AccountKey={KEY};"
API_KEY = f"{MARK}-api-key"
EVERYWHERE = {
    "AZURE_STORAGE_ACCOUNT_NAME": "account",
    "AZURE_STORAGE_ACCOUNT_KEY": KEY,
    "AZURE_STORAGE_SAS_TOKEN": SAS,
    "AZURE_STORAGE_CONNECTION_STRING": CONNECTION,
    "AZURE_CLIENT_SECRET": f"{MARK}-client",
    "AWS_ACCESS_KEY_ID": "AKIA",
    "AWS_SECRET_ACCESS_KEY": f"{MARK}-aws",
    "AWS_SESSION_TOKEN": f"{MARK}-session",
    "COLDSTREAM_API_KEY": API_KEY,
    "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer {MARK}-collector",
}


def leaks(text: str, *more: str) -> list[str]:
    """Secrets that a text holds, as they are, quoted or unquoted for a URL, with what surrounds each."""
    forms = {
        form for secret in (MARK, KEY, *more) for form in (secret, quote(secret), quote_plus(secret), unquote(secret))
    }
    return [text[max(0, at - 60) : at + 60] for form in forms if (at := text.find(form)) >= 0]


def told(done) -> str:
    """Everything that a process wrote."""
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def pushed_tiny(tiny, azurite_source):
    """The tiny model in Azurite, beside what other tests do with it."""
    push(tiny.folder, "az://secrets/tiny", azurite_source, quiet=True)
    return "az://secrets/tiny"


@pytest.fixture
def real_credentials(azurite):
    """Credentials by name that Azurite takes: their variables, and the secret in them."""
    sas = generate_container_sas(
        ACCOUNT_NAME, "secrets", ACCOUNT_KEY, permission="rl", expiry=datetime.now(UTC) + timedelta(hours=1)
    )
    account = {"AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT_NAME, "AZURE_STORAGE_BLOB_ENDPOINT": azurite.endpoint}
    return {
        "sas": (account | {"AZURE_STORAGE_SAS_TOKEN": sas}, parse_qs(sas)["sig"][0]),
        "key": (account | {"AZURE_STORAGE_ACCOUNT_KEY": ACCOUNT_KEY}, ACCOUNT_KEY),
        "connection-string": ({"AZURE_STORAGE_CONNECTION_STRING": azurite.connection_string}, ACCOUNT_KEY),
    }


@contextlib.contextmanager
def traced(environ):
    """The variables with a place for traces, and that place."""
    with sink() as (traces, port):
        where = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}", "OTEL_BSP_SCHEDULE_DELAY": "100"}
        yield traces, environ | where | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}


@pytest.mark.parametrize(("credential", "log_format"), [("sas", "text"), ("connection-string", "json")])
def test_a_good_start_tells_no_secret(pushed_tiny, real_credentials, tmp_path, credential, log_format):
    """Logs at their most talkative, probes, metrics, answers, traces and the children's command lines."""
    variables, secret = real_credentials[credential]
    names = ("COLDSTREAM_API_KEY", "OTEL_EXPORTER_OTLP_HEADERS", "AZURE_CLIENT_SECRET", "AWS_SECRET_ACCESS_KEY")
    environ = variables | {name: EVERYWHERE[name] for name in names}
    flags = ("--device", "cpu", "--log-level", "debug", "--log-format", log_format)
    with traced(environ) as (traces, environ):
        with serving(pushed_tiny, *flags, log_path=tmp_path / "log", environ=environ) as server:
            server.wait_ready()
            said = everything(server)
            traces.wait_for("startup")
        said += [repr(traces.spans), server.log()]
    assert [each for text in said for each in leaks(text, secret)] == []


def everything(server) -> list[str]:
    """Command lines of the children, and what is answered to whoever has the key and who has another."""
    said = [" ".join(process.cmdline()) for process in server.family()]
    assert said
    body = {"model": "m", "prompt": "Hello", "max_tokens": 2}
    for key in (API_KEY, f"{MARK}-wrong"):
        headers = {"Authorization": f"Bearer {key}"}
        for path in ("/health", "/startupz", "/metrics", "/v1/models", "/", "/version", "/nothing"):
            answer = server.client.get(path, headers=headers)
            said += [answer.text, repr(answer.headers)]
        answer = server.client.post("/v1/completions", json=body, headers=headers)
        assert answer.status_code == (200 if key == API_KEY else 401)
        said.append(answer.text)
    return said


def azure_of(server, **more):
    """Every secret there is, and the way to this server; beside a pod's identity not Azure's, which win over it."""
    has_identity = "AZURE_FEDERATED_TOKEN_FILE" in more
    secrets = {name: value for name, value in EVERYWHERE.items() if not (has_identity and name.startswith("AZURE_"))}
    variables = {"AZURE_STORAGE_ACCOUNT_NAME": "account", "AZURE_STORAGE_BLOB_ENDPOINT": server.account_url}
    return secrets | variables | {"COLDSTREAM_MAX_RETRIES": "1"} | more


@pytest.fixture
def identity(tmp_path):
    """A pod's identity: its variables, and a service that gives it a token."""

    def give(handler) -> None:
        body = json.dumps({"access_token": f"{MARK}-bearer", "expires_in": 3600, "token_type": "Bearer"}).encode()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    token = tmp_path / "token"
    token.write_text(f"{MARK}-of-the-pod")
    with http_server(give) as authority:
        yield {
            "AZURE_CLIENT_ID": "client",
            "AZURE_TENANT_ID": "tenant",
            "AZURE_AUTHORITY_HOST": authority,
            "AZURE_FEDERATED_TOKEN_FILE": str(token),
        }


QUICK = ("--device", "cpu", "--log-level", "debug")
FORBIDDEN = Plan((Rule(Refusal(403), attempts=None),))
BROKEN = {
    "403": FORBIDDEN,
    "404": Plan((Rule(Refusal(404), attempts=None),)),
    "412": Plan((Rule(Refusal(412), attempts=None, weights_only=True),)),
    "reset": Plan((Rule(Reset(), attempts=None),)),
    "cut": Plan((Rule(Cut(10), attempts=None, weights_only=True),)),
    "redirect": Plan((Rule(Redirect(), attempts=None),)),
    "echo": Plan((Rule(Echo(502), attempts=None),)),
    "echo-403": Plan((Rule(Echo(403), attempts=None, weights_only=True),)),
}
CREDENTIALS = ("sas-token", "account-key", "connection-string", "workload-identity")


@pytest.mark.parametrize(
    ("fault", "credential", "log_format"),
    [
        (fault, CREDENTIALS[number % 4], ("text", "json")[number % 3 % 2])
        for number, fault in enumerate(("403", "404", "412", "echo", "reset", "cut", "redirect", "echo-403"))
    ],
)
def test_a_start_that_fails_at_the_source_tells_no_secret(tiny, identity, tmp_path, fault, credential, log_format):
    """Log, error line and termination message of a source that refuses, breaks, is overwritten or repeats what it is asked."""
    last_words = tmp_path / "termination-log"
    last_words.touch()
    flags = (*QUICK, "--log-format", log_format, "--azure-credential", credential)
    with tiny.serve(BROKEN[fault], mount="account/models/tiny") as server:
        more = identity if credential == "workload-identity" else {}
        environ = azure_of(server, **more, COLDSTREAM_TERMINATION_LOG=str(last_words))
        done = coldstream("serve", "az://models/tiny", "--port", str(free_port()), *flags, environ=environ)
    assert done.returncode == 3, told(done)
    assert any(each.fault != Fault() for each in server.requests)
    assert last_words.read_text()
    assert leaks(told(done) + last_words.read_text()) == []


@pytest.mark.parametrize(
    ("fault", "credential"), [("403", "sas-token"), ("reset", "account-key"), ("echo", "workload-identity")]
)
def test_a_failure_that_lingers_tells_no_secret(tiny, identity, tmp_path, fault, credential):
    """/health, /startupz and /metrics of a server that shows why it failed, and the trace of its startup."""
    flags = (*QUICK, "--fail-linger", "20", "--azure-credential", credential)
    more = identity if credential == "workload-identity" else {}
    with (
        tiny.serve(BROKEN[fault], mount="account/models/tiny") as source,
        traced(azure_of(source, **more)) as (traces, environ),
        serving("az://models/tiny", *flags, log_path=tmp_path / "log", environ=environ) as server,
    ):
        wait_for(lambda: server.state() == "failed")
        said = "".join(server.client.get(path).text for path in ("/health", "/startupz", "/metrics", "/"))
        traces.wait_for("startup")
    assert "az://models/tiny" in said
    assert leaks(said + server.log() + repr(traces.spans)) == []


def test_a_start_through_faults_tells_no_secret(tiny, identity, tmp_path):
    """A server that is ready all the same, after resets, refusals and pages that repeat the request."""
    rules = [Rule(fault, share=0.2, seed=seed) for seed, fault in enumerate((Reset(), Refusal(503), Echo(502)))]
    flags = (*QUICK, "--azure-credential", "workload-identity")
    with (
        tiny.serve(Plan(tuple(rules)), mount="account/models/tiny") as source,
        traced(azure_of(source, **identity, COLDSTREAM_MAX_RETRIES="5")) as (traces, environ),
        serving("az://models/tiny", *flags, log_path=tmp_path / "log", environ=environ) as server,
    ):
        server.wait_ready()
        said = everything(server)
        traces.wait_for("startup")
    assert {type(each.fault) for each in source.requests} == {Fault, Reset, Refusal, Echo}
    assert [each for text in (*said, repr(traces.spans), server.log()) for each in leaks(text)] == []


YAML = f"storage:\n  azure_sas_token: {MARK}\n"
URL = f"https://account.blob.core.windows.net/models/tiny?{SAS}"
MISTAKES = [
    (URL,),
    ("--model", URL),
    (f"az://models/tiny?{SAS}",),
    (f"http://127.0.0.1:9/models?{SAS}",),
    (f"http://user:{MARK}@127.0.0.1:9/models",),
    (f"s3://AKIA:{MARK}@bucket/prefix",),
    (f"nothing://host/path?{SAS}",),
    ("az://models/tiny", f"--azure-sas-token={SAS}"),
    ("az://models/tiny", "--azure-sas-token", SAS),
    ("az://models/tiny", f"--azure-account-key={KEY}"),
    ("az://models/tiny", f"--azure-connection-string={CONNECTION}"),
    ("az://models/tiny", KEY),
    ("az://models/tiny", f"--azure-endpoint=http://127.0.0.1:9/account?{SAS}"),
    ("az://models/tiny", f"--azure-endpoint=http://user:{MARK}@127.0.0.1:9/account"),
    ("az://models/tiny", f"--otlp-traces-endpoint=http://user:{MARK}@127.0.0.1:9"),
    ("az://models/tiny", f"--api-key={API_KEY}", "--no-such-flag"),
    ("az://models/tiny", "--config", "YAML"),
]


@pytest.mark.parametrize(("words", "command"), [*zip(MISTAKES, cycle(("serve", "inspect", "preflight")), strict=False)])
def test_a_secret_in_the_wrong_place_is_not_repeated(tmp_path, command, words):
    """Flags that do not exist, URIs with a query or a password, secrets in a file: an error, and not a letter of it."""
    path = tmp_path / "config.yaml"
    path.write_text(YAML)
    words = [str(path) if word == "YAML" else word for word in words]
    done = coldstream(command, *words, environ={"COLDSTREAM_MAX_RETRIES": "0", "AZURE_STORAGE_ACCOUNT_NAME": "account"})
    assert done.returncode != 0
    assert told(done)
    assert "Traceback" not in told(done)
    assert leaks(told(done)) == []


HOPELESS = [
    {"AZURE_STORAGE_CONNECTION_STRING": f"{MARK} without form"},
    {"AZURE_STORAGE_CONNECTION_STRING": f"AccountName=account;BlobEndpoint=http://127.0.0.1:9/account?{SAS}"},
    {"AZURE_STORAGE_CONNECTION_STRING": f"{CONNECTION}BlobEndpoint=http://127.0.0.1:9/account?{SAS}"},
    {"AZURE_STORAGE_CONNECTION_STRING": f"{CONNECTION}BlobEndpoint=http://user:{MARK}@127.0.0.1:9/account"},
    {"AZURE_STORAGE_CONNECTION_STRING": f"BlobEndpoint=http://127.0.0.1:9/account;SharedAccessSignature={SAS}"},
    {"AZURE_STORAGE_SAS_TOKEN": f"?{SAS}", "AZURE_STORAGE_BLOB_ENDPOINT": "http://127.0.0.1:9/account"},
    {"AZURE_STORAGE_SAS_TOKEN": f"{MARK} {MARK}\u00e9", "AZURE_STORAGE_BLOB_ENDPOINT": "http://127.0.0.1:9/account"},
    {"AZURE_STORAGE_ACCOUNT_KEY": f"not-base64-{MARK}", "AZURE_STORAGE_BLOB_ENDPOINT": "http://127.0.0.1:9/account"},
    {"AZURE_STORAGE_ACCOUNT_KEY": KEY, "AZURE_STORAGE_BLOB_ENDPOINT": f"http://127.0.0.1:9/account?{SAS}"},
    {"AZURE_STORAGE_ACCOUNT_KEY": KEY, "HTTP_PROXY": f"http://user:{MARK}@127.0.0.1:9"},
    {"AZURE_STORAGE_ACCOUNT_KEY": KEY, "HTTPS_PROXY": f"http://user:{MARK}@127.0.0.1:9"},
    {"MODEL_SOURCE_URI": URL},
]


@pytest.mark.parametrize(
    ("environ", "command"),
    [*product(HOPELESS, ("push",)), *zip(HOPELESS, cycle(("serve", "inspect", "preflight")), strict=False)],
)
def test_an_environment_that_cannot_work_is_not_repeated(tiny, command, environ):
    """Secrets of the wrong form, or at a host that does not answer, by every command that reads them."""
    environ = {"AZURE_STORAGE_ACCOUNT_NAME": "account", "COLDSTREAM_MAX_RETRIES": "0"} | environ
    words = [str(tiny.folder)] if command == "push" else []
    uri = [] if "MODEL_SOURCE_URI" in environ else ["az://models/tiny"]
    done = coldstream(command, *words, *uri, *(["--json"] if command == "preflight" else []), environ=environ)
    assert done.returncode != 0
    assert told(done)
    assert "Traceback" not in told(done)
    assert leaks(told(done)) == []


@pytest.mark.parametrize("command", ["serve", "push", "inspect", "bench", "preflight"])
def test_help_tells_no_secret(command):
    """What is set is no part of --help."""
    done = coldstream(command, "--help", environ=EVERYWHERE)
    assert done.returncode == 0
    assert leaks(told(done)) == []


@pytest.mark.parametrize("credential", ["key", "connection-string"])
@pytest.mark.parametrize("command", ["inspect", "preflight", "push"])
def test_a_command_that_works_tells_no_secret(pushed_tiny, real_credentials, tiny, command, credential):
    """What the others print of a good source, with everything that they log."""
    variables, secret = real_credentials[credential]
    words = [str(tiny.folder)] if command == "push" else []
    more = ["--json", "--device", "cpu"] if command == "preflight" else []
    environ = variables | {"COLDSTREAM_API_KEY": API_KEY, "AZURE_CLIENT_SECRET": f"{MARK}-client"}
    done = coldstream(command, *words, pushed_tiny, *more, "--log-level", "debug", environ=environ)
    assert done.returncode == 0, told(done)
    assert leaks(told(done), secret) == []


@pytest.mark.parametrize("command", ["inspect", "preflight", "push"])
def test_a_command_that_is_denied_tells_no_secret(tiny, command):
    """The same of a service that refuses the credential; a report for programs is still JSON."""
    words = [str(tiny.folder)] if command == "push" else []
    more = ["--json", "--device", "cpu"] if command == "preflight" else []
    flags = ("--log-level", "debug", "--azure-credential", "sas-token")
    with tiny.serve(FORBIDDEN, mount="account/models/tiny") as server:
        done = coldstream(command, *words, "az://models/tiny", *more, *flags, environ=azure_of(server))
    assert done.returncode == 3, told(done)
    assert leaks(told(done)) == []
    if command == "preflight":
        assert not json.loads(done.stdout)["would_serve"]


def test_no_repr_shows_a_secret():
    """Settings, options and the request that crosses to the loader, printed by whoever debugs."""
    settings = parse(["serve", "az://models/tiny", "--device", "cpu"], EVERYWHERE).settings
    azure = AzureOptions(account_key=KEY, sas_token=SAS, connection_string=CONNECTION)
    source = SourceOptions(azure=azure)
    request = LoadRequest(
        origin=Origin(arena_id="a"),
        uri="az://models/tiny",
        strategy=DIRECT_GPU,
        source=source,
        pipeline=PipelineOptions(),
        destination=DestinationOptions(),
    )
    assert settings.storage.source_options().azure.account_key == KEY
    holders = (settings, settings.storage, settings.server, settings.storage.source_options(), azure, source, request)
    assert [
        each for holder in (*holders, ApiOptions(api_keys=(API_KEY,))) for each in leaks(f"{holder!r} {holder}")
    ] == []
