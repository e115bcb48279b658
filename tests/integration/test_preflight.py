"""Preflight against real services: Blob storage, web servers that refuse, stall and lie, and a GPU that is host memory."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from azure.storage.blob import ContainerSasPermissions, generate_container_sas
from safetensors.torch import save_file

from app.preflight.deadline import Deadline, Late
from app.preflight.finding import FAILED, OK, SKIPPED, WARNING, Finding
from app.preflight.report import as_json, exit_code
from app.preflight.run import look
from app.settings import parse
from tools.azurite import ACCOUNT_KEY, ACCOUNT_NAME
from tools.blob_server import BlobServer, Fault
from tools.nginx import nginx
from tools.ports import free_port

ROOT = Path(__file__).parents[2]
STAGED = ("--load-strategy", "host-staging")
FAKE = ROOT / "tests" / "fake_driver"


def checks(uri, *words, environ=None, timeout_s=25.0) -> dict[str, Finding]:
    """Every finding by name, on the CPU."""
    settings = parse(["preflight", str(uri), "--device", "cpu", *words], environ or {}).settings
    found = look(settings, environ or {}, Deadline(timeout_s))
    assert len({finding.name for finding in found}) == len(found)
    return {finding.name: finding for finding in found}


def statuses(found, *names) -> tuple[str, ...]:
    return tuple(found[name].status for name in names)


def process(uri, *words, environ=None) -> tuple[int, dict[str, dict[str, object]]]:
    """Exit code and checks by name of a preflight in a process of its own."""
    command = [sys.executable, "-P", "-m", "app", "preflight", str(uri), "--json", *words]
    path = os.pathsep.join(filter(None, [(environ or {}).get("PYTHONPATH"), str(ROOT)]))
    env = {**os.environ, **(environ or {}), "PYTHONPATH": path}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert "Traceback" not in done.stderr
    report = json.loads(done.stdout)
    assert report["exit_code"] == done.returncode
    return done.returncode, {check["name"]: check for check in report["checks"]}


@contextmanager
def http_server(answer, address=("127.0.0.1", 0)) -> Iterator[str]:
    """A server whose every GET, HEAD and POST is `answer(handler)`; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        do_HEAD = do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    server = ThreadingHTTPServer(address, Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://{server.server_address[0]}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_model_in_blob_storage_is_found_whole(pushed_demo, azure_environment, demo_model_dir):
    """Every stage of the source is ok, and the figures are those of the checkpoint."""
    found = checks(pushed_demo, environ=azure_environment)
    names = ("source", "dns", "connection", "clock", "credential", "metadata", "throughput", "model", "settings")
    assert statuses(found, *names, "tokenizer", "torch", "host-memory") == (OK,) * 12
    assert exit_code(list(found.values())) == 0
    shards_bytes = sum(path.stat().st_size for path in demo_model_dir.glob("*.safetensors"))
    assert found["metadata"].figures["shards_bytes"] == shards_bytes
    assert found["model"].figures["fetch_bytes"] < shards_bytes
    assert found["throughput"].figures["throughput_bytes_per_s"] > 0
    assert found["credential"].figures["credential"] == "connection-string"


@pytest.mark.parametrize(("words", "reads"), [((), 4), (("--hedge-budget-ratio", "0"), 0), (STAGED, 0)])
def test_second_reads_need_connections_too(tmp_path, words, reads):
    """As many as are read at once: an eighth of the lanes, none where slow ranges are not read again."""
    found = checks(tmp_path, "--concurrency", "32", "--max-waiting-requests", "100", *words)
    assert found["open-files"].figures["connections"] == 100 + 32 + reads


def test_a_container_that_is_not_there(azure_environment):
    """404: the stages before it worked, those behind it are skipped, nothing of the model is judged."""
    found = checks("az://not-there/model", environ=azure_environment)
    assert statuses(found, "connection", "credential", "metadata") == (OK, OK, FAILED)
    assert statuses(found, "throughput", "model", "settings", "tokenizer", "host-memory") == (SKIPPED,) * 5
    assert "check account, container and prefix" in found["metadata"].action
    assert exit_code(list(found.values())) == 3


@pytest.mark.parametrize("wrong", ["d3Jvbmc" + ACCOUNT_KEY[7:], ACCOUNT_KEY[:40]])
def test_a_wrong_or_cut_off_key(pushed_demo, azurite, wrong):
    """403: the key is named as the cause, and is nowhere in the report."""
    environ = {
        "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT_NAME,
        "AZURE_STORAGE_ACCOUNT_KEY": wrong,
        "AZURE_STORAGE_BLOB_ENDPOINT": azurite.endpoint,
    }
    found = checks(pushed_demo, environ=environ)
    assert statuses(found, "credential", "metadata") == (OK, FAILED)
    assert "the key is wrong or was rotated" in found["metadata"].action
    assert wrong not in as_json(pushed_demo, "cpu", list(found.values()), 1)


@pytest.mark.parametrize(("hours", "failing"), [(1, None), (-1, "credential")])
def test_a_sas_token_is_told_by_its_end(pushed_demo, azurite, hours, failing):
    """One that has ended fails before anybody is asked; one that has not reads the model."""
    token = generate_container_sas(
        ACCOUNT_NAME,
        "models",
        account_key=ACCOUNT_KEY,
        permission=ContainerSasPermissions(read=True, list=True),
        start=datetime.now(UTC) - timedelta(hours=2),
        expiry=datetime.now(UTC) + timedelta(hours=hours),
    )
    environ = {
        "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT_NAME,
        "AZURE_STORAGE_SAS_TOKEN": token,
        "AZURE_STORAGE_BLOB_ENDPOINT": azurite.endpoint,
    }
    found = checks(pushed_demo, environ=environ)
    assert next((finding.name for finding in found.values() if finding.status == FAILED), None) == failing
    assert token.partition("sig=")[2] not in as_json(pushed_demo, "cpu", list(found.values()), 1)


IDENTITY = {"AZURE_CLIENT_ID": "client", "AZURE_TENANT_ID": "tenant", "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT_NAME}


def test_half_an_identity_and_a_missing_token_are_named(azurite, tmp_path):
    """A pod that started before the webhook, or whose template lacks its label."""
    endpoint = {"AZURE_STORAGE_BLOB_ENDPOINT": azurite.endpoint, "AZURE_FEDERATED_TOKEN_FILE": str(tmp_path / "token")}
    missing = checks("az://models/x", environ={**IDENTITY, **endpoint})["credential"]
    half = checks("az://models/x", environ={**IDENTITY, **endpoint, "AZURE_CLIENT_ID": ""})["credential"]
    for finding, part in ((missing, "is not there"), (half, "AZURE_CLIENT_ID is not set")):
        assert (finding.status, finding.exit_code) == (FAILED, 3)
        assert part in finding.detail
        assert 'label the pod template azure.workload.identity/use="true"' in finding.action


def test_variables_of_an_identity_without_its_token(azurite, monkeypatch, tmp_path):
    """Nothing else has a credential either: the variables that are half there are named as the cause."""
    monkeypatch.setenv("HOME", str(tmp_path))
    found = checks("az://models/x", environ={**IDENTITY, "AZURE_STORAGE_BLOB_ENDPOINT": azurite.endpoint})
    assert statuses(found, "credential", "metadata") == (WARNING, FAILED)
    assert "AZURE_FEDERATED_TOKEN_FILE is not set" in found["metadata"].detail
    assert "label the pod template" in found["metadata"].action


@pytest.mark.parametrize("status", [400, 401])
def test_an_identity_that_gets_no_token(azurite, tmp_path, status):
    """Entra's refusal of the pod's token is told by its code, as a matter of the federated credential."""
    body = json.dumps({"error": "invalid_client", "error_description": "AADSTS70021: No matching record"}).encode()

    def refuse(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    token = tmp_path / "token"
    token.write_text("s3cret-of-the-pod")
    with http_server(refuse) as authority:
        environ = {
            **IDENTITY,
            "AZURE_FEDERATED_TOKEN_FILE": str(token),
            "AZURE_AUTHORITY_HOST": authority,
            "AZURE_STORAGE_BLOB_ENDPOINT": azurite.endpoint,
        }
        found = checks("az://models/x", environ=environ)
    assert statuses(found, "credential", "metadata") == (OK, FAILED)
    assert "AADSTS70021" in found["metadata"].detail
    assert "federated credential" in found["metadata"].action
    assert "s3cret" not in as_json("", "cpu", list(found.values()), 1)


def test_an_authority_that_cannot_be_reached(azurite, tmp_path):
    """A network that drops what goes there is told before every read waits for it in turn."""
    token = tmp_path / "token"
    token.write_text("of the pod")
    with socket.socket() as full:  # nobody accepts: what comes behind the first connections is dropped
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        first = [socket.socket() for _ in range(2)]
        for waiting in first:
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        environ = {
            **IDENTITY,
            "AZURE_FEDERATED_TOKEN_FILE": str(token),
            "AZURE_AUTHORITY_HOST": f"https://127.0.0.1:{full.getsockname()[1]}/",
            "AZURE_STORAGE_BLOB_ENDPOINT": azurite.endpoint,
        }
        found = checks("az://models/x", "--connect-timeout", "0.5", environ=environ)
        for waiting in first:
            waiting.close()
    assert statuses(found, "connection", "credential", "metadata") == (OK, FAILED, SKIPPED)
    assert "got no token from Entra ID at 127.0.0.1" in found["credential"].detail
    assert "no answer (timeout)" in found["credential"].detail


@pytest.mark.parametrize(
    ("status", "part"), [(401, "access denied (401)"), (403, "access denied (403)"), (404, "nothing"), (503, "503")]
)
def test_what_a_web_server_answers(demo_model_dir, status, part):
    """Each status is told for what it is, in bounded time, with exit code 3 and something to do."""
    with BlobServer(demo_model_dir, hook=lambda _: Fault(status=status)) as source:
        found = checks(source.url, "--max-retries", "1")
    assert statuses(found, "connection", "credential", "metadata") == (OK, SKIPPED, FAILED)
    assert part in found["metadata"].detail
    assert found["metadata"].action
    assert exit_code(list(found.values())) == 3


def test_a_weight_that_cannot_be_read_leaves_the_model_judged(demo_model_dir):
    """Metadata and headers are there, the range is refused: the model is told nevertheless."""

    def hook(request):
        return Fault(status=403) if request.end > 4 << 20 else None

    with BlobServer(demo_model_dir, hook=hook) as source:
        found = checks(source.url)
    assert statuses(found, "metadata", "throughput", "model", "tokenizer") == (OK, FAILED, OK, OK)


@pytest.mark.parametrize(("shards", "status"), [(253, OK), (254, FAILED)])
def test_more_shards_than_host_staging_takes(tmp_path, shards, status):
    """They are refused with the loader's own words, and only by it: direct-gpu takes any number."""
    tensor = torch.zeros(1)
    names = {f"t{n}": f"model-{n:05}.safetensors" for n in range(shards)}
    for tensor_name, name in names.items():
        save_file({tensor_name: tensor}, tmp_path / name)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    staged, streamed = checks(tmp_path, *STAGED)["metadata"], checks(tmp_path)["metadata"]
    assert (staged.status, streamed.status) == (status, OK)
    if status == FAILED:
        assert (staged.exit_code, staged.action) == (4, "use --load-strategy direct-gpu")
        assert "254 shards" in staged.detail


def test_a_slow_source_is_late_and_says_so(demo_model_dir):
    """A source at a trickle ends with the deadline, as a failure of the stage that it held."""
    with BlobServer(demo_model_dir, bytes_per_s=50_000) as source:
        found = checks(source.url, timeout_s=2)
    assert statuses(found, "connection", "metadata", "throughput") == (OK, FAILED, SKIPPED)
    assert found["metadata"].action


def test_a_folder_that_is_not_there(tmp_path):
    """What to do is told beside what was found, not made of it."""
    found = checks(tmp_path / "missing")["metadata"]
    assert (found.status, found.detail) == (FAILED, f"file://{tmp_path}/missing: no such folder")
    assert found.action == "check the path and the volume's mount"


def test_a_closed_port_and_an_unknown_host():
    """The first stage that fails is named, and none behind it is tried."""
    closed = checks(f"http://127.0.0.1:{free_port()}/model")
    assert statuses(closed, "dns", "connection", "metadata") == (OK, FAILED, SKIPPED)
    assert "Connection refused" in closed["connection"].detail
    unknown = checks("https://account.blob.core.windows.invalid/models/llama", environ={"AZURE_STORAGE_SAS_TOKEN": "s"})
    assert statuses(unknown, "source", "dns", "connection", "credential") == (OK, FAILED, SKIPPED, SKIPPED)
    assert "private DNS zone" in unknown["dns"].action


def test_a_black_hole_ends_with_the_deadline():
    """A server that accepts and says nothing has a connection and no more, and the process ends."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        code, found = process(f"http://127.0.0.1:{silent.getsockname()[1]}/model", "--timeout", "2", "--device", "cpu")
    assert code == 3
    assert [found[name]["status"] for name in ("connection", "clock", "metadata")] == [OK, SKIPPED, FAILED]


def test_a_server_that_does_not_answer_head_is_connected_all_the_same():
    """TCP worked, and the clock alone is not known: what is read is asked for by other means."""

    def only_get(handler: BaseHTTPRequestHandler) -> None:
        if handler.command != "HEAD":
            handler.send_error(404)

    with http_server(only_get) as url:
        found = checks(url)
    assert statuses(found, "connection", "clock", "metadata") == (OK, SKIPPED, FAILED)
    assert "nothing is there" in found["metadata"].detail


def test_a_clock_that_is_wrong_is_a_warning():
    """An hour off the Date header of the service is told, whatever the answer was."""

    def an_hour_ago(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response_only(404)
        handler.send_header("Date", handler.date_time_string(int(time.time()) - 3600))
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    with http_server(an_hour_ago) as url:
        found = checks(url)
    assert found["clock"].status == WARNING
    assert found["clock"].figures["skew_s"] == pytest.approx(3600, abs=30)
    assert "NTP" in found["clock"].action


def test_a_certificate_of_an_unknown_authority(demo_model_dir, tmp_path):
    """TLS fails by the certificate's fault until SSL_CERT_FILE names its authority."""
    with nginx(demo_model_dir, workers=1, state_dir=tmp_path / "nginx") as server:
        code, refused = process(server.tls_url, "--device", "cpu")
        trusted_code, trusted = process(
            server.tls_url, "--device", "cpu", environ={"SSL_CERT_FILE": str(server.bundle_file)}
        )
    assert (code, refused["connection"]["status"]) == (3, FAILED)
    assert "certificate is not trusted" in refused["connection"]["detail"]
    assert "SSL_CERT_FILE" in refused["connection"]["action"]
    assert (trusted_code, trusted["connection"]["status"]) == (0, OK)
    assert trusted["connection"]["figures"]["tls_version"].startswith("TLS")


def test_a_proxy_is_told_instead_of_a_connection_that_serve_does_not_make(monkeypatch):
    """Through a proxy neither the name nor the port of the source means anything here."""
    monkeypatch.setenv("http_proxy", f"http://user:s3cret@127.0.0.1:{free_port()}")
    found = checks("http://nosuchhost.invalid/model", "--max-retries", "0")
    assert statuses(found, "dns", "connection", "metadata") == (SKIPPED, SKIPPED, FAILED)
    assert "proxy 127.0.0.1" in found["dns"].detail
    assert "s3cret" not in as_json("", "cpu", list(found.values()), 1)


@pytest.mark.parametrize(
    ("fake", "words", "expected"),
    [
        ({}, (), {"gpu": OK, "gpu-sharing": OK, "gpu-memory": OK}),
        ({"free_bytes": 1 << 20}, (), {"gpu": OK, "gpu-memory": FAILED}),
        ({"attributes": {"COMPUTE_MODE": 3}}, (), {"gpu": OK, "gpu-sharing": WARNING}),
        ({"attributes": {"COMPUTE_MODE": 3}}, ("--no-host-fallback",), {"gpu-sharing": FAILED}),
        ({"attributes": {"COMPUTE_MODE": 3}}, (*STAGED, "--no-host-fallback"), {"gpu-sharing": SKIPPED}),
        ({"free_bytes": 1 << 20}, STAGED, {"gpu": OK, "gpu-memory": WARNING}),
        ({"attributes": {"COMPUTE_MODE": 2}}, (), {"gpu": FAILED}),
        ({"fail": {"cuInit": "CUDA_ERROR_NO_DEVICE"}}, (), {"gpu": FAILED, "gpu-memory": SKIPPED}),
        ({"fail": {"cuDevicePrimaryCtxRetain": "CUDA_ERROR_ECC"}}, (), {"gpu": FAILED, "gpu-memory": SKIPPED}),
        ({"gpus": 0}, (), {"gpu": FAILED, "gpu-sharing": SKIPPED}),
    ],
)
def test_a_gpu_is_seen_through_the_driver(demo_model_dir, fake, words, expected):
    """What the driver tells and refuses is what the loader would meet."""
    environ = {"PYTHONPATH": str(FAKE), "FAKE_CUDA": json.dumps(fake)}
    code, found = process(demo_model_dir, "--device", "cuda", *words, environ=environ)
    assert {name: found[name]["status"] for name in expected} == expected
    installed = found.pop("torch")  # which may be built for the CPU alone
    well = 6 if installed["status"] == FAILED else 0
    assert code == (5 if FAILED in {check["status"] for check in found.values()} else well)
    if found["gpu"]["status"] == OK:
        assert found["gpu"]["figures"]["compute_capability"] == "9.0"
        assert found["gpu"]["figures"]["cuda_version"] == "12.8"


def test_a_dead_mount_ends_with_the_deadline(monkeypatch):
    """A path that is never resolved is late, as a failure of the source, and what looks at the machine is, too."""
    mount = threading.Event()
    monkeypatch.setattr(Path, "resolve", lambda *_: mount.wait())
    found = checks("dead/model", timeout_s=1)
    mount.set()
    assert statuses(found, "source", "metadata", "host-memory", "disk") == (FAILED, SKIPPED, SKIPPED, SKIPPED)
    assert "mount" in found["source"].action


def test_a_machine_that_nobody_expected_is_left_out(monkeypatch, tmp_path):
    """Whatever breaks while it is looked at ends no preflight, and its words are not shown."""

    def broken(_):
        raise RuntimeError("s3cret")

    monkeypatch.setattr("app.preflight.run.look_at_host", broken)
    found = checks(tmp_path)
    assert statuses(found, "host-memory", "container") == (SKIPPED, SKIPPED)
    assert found["disk"].detail == "unexpected: RuntimeError"


def test_work_that_never_ends_is_left_behind():
    """Whoever waits goes on at the deadline, and the deadline remembers it; what has ended is given nevertheless."""
    deadline = Deadline(0.2)
    never = threading.Event()
    done = deadline.start(lambda: 7)
    with pytest.raises(Late, match=r"within 0\.2 s"):
        deadline.run(never.wait)
    assert deadline.is_missed
    assert done.result() == 7
    with pytest.raises(ZeroDivisionError):
        Deadline(5).run(lambda: 1 // 0)
    never.set()
