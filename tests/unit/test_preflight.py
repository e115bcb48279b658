"""Preflight's pure part: findings from the figures of machines, sources and models that are not here."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from importlib.metadata import version

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.preflight.device import driver_of, look_at_torch, torch_of
from app.preflight.finding import FAILED, OK, SKIPPED, WARNING, Finding, failed, ok, refused, skipped, warning
from app.preflight.host import available_cpus
from app.preflight.judgement.device import Gpu, Need, Torch, judge_gpu, judge_room, judge_torch, no_gpu
from app.preflight.judgement.host import Demand, Host, judge_host, judge_memory
from app.preflight.judgement.model import judge_model
from app.preflight.judgement.source import (
    Answer,
    judge_clock,
    judge_connection,
    judge_credential,
    judge_throughput,
    sas_expiry,
    unread,
)
from app.preflight.report import as_json, exit_code, table
from app.settings import Settings, load, parse
from streaming import errors
from streaming.cuda_driver import DeviceMemory
from streaming.describe import Description
from streaming.host_memory import HostMemory
from streaming.messages import BlobVersion, Entry
from streaming.options import AzureOptions
from tests.unit.configurations import URI, message

GIB = 1 << 30
H100 = Gpu("NVIDIA H100", (9, 0), (12, 8), "570.86.15", "DEFAULT", "", DeviceMemory(78 * GIB, 80 * GIB))
HOST = Host(HostMemory(64 * GIB), 16, "/tmp", 100 * GIB, False, GIB, None, 1 << 20, 1 << 20, ("nvme0n1",), "Kubernetes")
ON_GPU = Demand(
    on_gpu=True, is_staged=False, staged_bytes=None, chunks_bytes=GIB, slots_bytes=128 << 20, connections=272
)
ON_CPU = Demand(
    on_gpu=False, is_staged=False, staged_bytes=None, chunks_bytes=GIB, slots_bytes=128 << 20, connections=272
)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def replaced(figures, **changes):
    return type(figures)(**{name: getattr(figures, name) for name in figures.__dataclass_fields__} | changes)


def of(findings: list[Finding], name: str) -> Finding:
    (found,) = [finding for finding in findings if finding.name == name]
    return found


@pytest.mark.parametrize(
    ("changes", "fallback", "statuses"),
    [
        ({}, True, (OK, OK)),
        ({"compute_mode": "EXCLUSIVE_PROCESS", "obstacle": "its compute mode"}, True, (OK, WARNING)),
        ({"compute_mode": "EXCLUSIVE_PROCESS", "obstacle": "its compute mode"}, False, (OK, FAILED)),
        ({"compute_mode": "PROHIBITED", "memory": None}, True, (FAILED, OK)),
        ({"memory": None, "failure": "the driver failed: look"}, True, (FAILED, OK)),
    ],
)
def test_a_gpu_is_judged_by_who_may_use_it(changes, fallback, statuses):
    """What the loader falls back from is a warning, or a failure where fallbacks are not allowed."""
    findings = judge_gpu(replaced(H100, **changes), host_fallback=fallback)
    assert tuple(finding.status for finding in findings) == statuses
    assert all(finding.exit_code == 5 for finding in findings if finding.status == FAILED)


def test_host_staging_shares_no_memory_of_a_gpu():
    """An obstacle to sharing, fallbacks or not, is none of its business."""
    exclusive = replaced(H100, compute_mode="EXCLUSIVE_PROCESS", obstacle="its compute mode")
    assert of(judge_gpu(exclusive, host_fallback=False, is_shared=False), "gpu-sharing").status == SKIPPED


def test_a_mig_slice_is_told_by_its_name():
    """The driver has no other word for it that needs no management library."""
    seen, _ = judge_gpu(replaced(H100, name="NVIDIA H100 MIG 1g.10gb"), host_fallback=True)
    assert seen.figures["is_mig"]


@pytest.mark.parametrize(
    ("torch", "on_gpu", "status"),
    [
        (None, False, FAILED),
        (Torch("2.9", None), False, OK),
        (Torch("2.9", None), True, FAILED),
        (Torch("2.9", "12.6"), True, OK),
        (Torch("2.9", "12.9"), True, WARNING),
        (Torch("2.9", "13.0"), True, FAILED),
        (Torch("2.9", "what"), True, OK),
    ],
)
def test_torch_needs_a_driver_of_its_major_version(torch, on_gpu, status):
    """A newer minor version of CUDA works on an older driver, a newer major one does not."""
    finding = judge_torch(torch, H100, on_gpu=on_gpu)
    assert finding.status == status
    assert finding.exit_code == (6 if status == FAILED else 0)  # the engine dies of it


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("__version__ = '2.9.1+cu128'\ndebug = False\ncuda: Optional[str] = '12.8'\n", Torch("2.9.1+cu128", "12.8")),
        ("__version__ = '2.1.0'\ncuda = '11.8'\nhip = None\n", Torch("2.1.0", "11.8")),
        ("__version__ = '2.9.1+cpu'\ncuda: Optional[str] = None\n", Torch("2.9.1+cpu", None)),
        ("", Torch("unknown", None)),
    ],
)
def test_torch_is_read_as_a_file(text, expected):
    """Old and new forms of torch/version.py; what is installed here is found the same way."""
    assert torch_of(text) == expected
    assert look_at_torch().version == version("torch")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023", "535.104.05"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (dvs)", "570.86.15"),
        ("something else", None),
    ],
)
def test_the_drivers_version_is_read_as_a_file(text, expected):
    """The closed module's line and the open one's."""
    assert driver_of(text) == expected


def test_a_gpu_that_nobody_sees_is_a_warning_where_torch_was_made_for_one():
    """--device auto would serve on the CPU without a word; on a machine for CPUs that is no news."""
    assert no_gpu("auto", Torch("2.9", "12.8"))[0].status == WARNING
    assert no_gpu("cpu", Torch("2.9", "12.8"))[0].status == SKIPPED
    assert no_gpu("auto", Torch("2.9", None))[0].status == SKIPPED


def test_the_room_is_the_loaders_own_guard():
    """Weights x 1.1 and the least cache must fit what is free."""
    fits = judge_room(DeviceMemory(120, 200), Need(100, 10))
    short = judge_room(DeviceMemory(119, 200), Need(100, 10))
    assert (fits.status, short.status, short.exit_code) == (OK, FAILED, 5)
    assert "1 short" in short.detail
    assert "--max-model-len" in short.action


def test_figures_that_serve_does_not_refuse_by_are_no_failure():
    """A class of transformers' has its own, host-staging no guard: what does not fit is a warning there."""
    need = Need(100 * GIB, GIB, is_guarded=False)
    room = judge_room(DeviceMemory(GIB, 80 * GIB), need)
    memory = judge_memory(HostMemory(GIB), ON_CPU, need, weights_in_host=True)
    assert (room.status, memory.status) == (WARNING, WARNING)
    assert "larger GPU" in room.action
    assert "larger machine" in memory.action


@pytest.mark.parametrize(
    ("available", "limit", "weights_in_host", "status"),
    [
        (64 * GIB, None, True, OK),
        (16 * GIB, 17 * GIB, True, WARNING),
        (15 * GIB, 17 * GIB, True, FAILED),
        (2 * GIB, 4 * GIB, False, OK),
        (GIB // 2, GIB, False, WARNING),
    ],
)
def test_host_memory_counts_weights_where_they_lie_and_chunks_always(available, limit, weights_in_host, status):
    """On a GPU only chunks in flight are in it; what is short of chunks alone is a warning."""
    need = Need(15 * GIB, GIB)
    finding = judge_memory(
        HostMemory(available, limit), ON_CPU if weights_in_host else ON_GPU, need, weights_in_host=weights_in_host
    )
    assert finding.status == status
    assert finding.figures["available_bytes"] == available


@pytest.mark.parametrize(("left_bytes", "status"), [(GIB - 1, WARNING), (GIB, OK)])
def test_a_cpu_keeps_something_for_the_processes_themselves(left_bytes, status):
    """Weights and cache alone would fit, but not the programs that serve them."""
    demand = replaced(ON_CPU, chunks_bytes=1 << 20)
    finding = judge_memory(HostMemory(16 * GIB + left_bytes), demand, Need(15 * GIB, GIB), weights_in_host=True)
    assert finding.status == status
    assert ("1.00 GiB" in finding.action) == (status == WARNING)


@pytest.mark.parametrize(
    ("free", "is_memory", "staged", "status"),
    [
        (10, False, None, OK),
        (None, False, None, OK),
        (10, False, 10, OK),
        (10, True, 10, WARNING),
        (9, False, 10, FAILED),
        (None, False, 10, FAILED),
    ],
)
def test_the_disk_matters_to_host_staging_only(free, is_memory, staged, status):
    """The shards must fit TMPDIR's folder; one in memory counts against the pod's limit."""
    demand = replaced(ON_GPU, is_staged=staged is not None, staged_bytes=staged)
    host = replaced(HOST, disk_free_bytes=free, disk_is_memory=is_memory)
    assert of(judge_host(host, demand), "disk").status == status


@pytest.mark.parametrize(
    ("name", "changes", "demand", "status"),
    [
        ("pinned-memory", {"memlock_bytes": 8 << 20}, ON_GPU, OK),
        ("pinned-memory", {"memlock_bytes": 8 << 20}, ON_CPU, SKIPPED),
        ("open-files", {"open_files": 256}, ON_GPU, WARNING),
        ("open-files", {"open_files": None}, ON_GPU, OK),
        ("open-files", {"most_open_files": 1023}, replaced(ON_GPU, cache_files=1024), WARNING),
        ("open-files", {"most_open_files": 1024}, replaced(ON_GPU, cache_files=1024), OK),
        ("open-files", {"most_open_files": None}, replaced(ON_GPU, cache_files=1024), OK),
        ("cpus", {"cpus": 3.5}, ON_GPU, WARNING),
        ("cpus", {"cpus": 3.5}, ON_CPU, OK),
        ("shared-memory", {"shared_memory_bytes": 0}, ON_CPU, OK),
        ("shared-memory", {"shared_memory_bytes": None}, ON_GPU, OK),
    ],
)
def test_limits_of_the_machine(name, changes, demand, status):
    """What would slow a GPU down is a warning; nothing here needs /dev/shm."""
    assert of(judge_host(replaced(HOST, **changes), demand), name).status == status


@pytest.mark.parametrize(("memlock_bytes", "told"), [(8 << 20, True), (128 << 20, False), (None, False)])
def test_a_small_limit_of_locked_memory_is_told_with_the_sign_that_it_matters(memlock_bytes, told):
    """Containers have one as a rule, which drivers do not ask."""
    finding = of(judge_host(replaced(HOST, memlock_bytes=memlock_bytes), ON_GPU), "pinned-memory")
    assert (finding.status, "pageable-slots" in finding.detail) == (OK, told)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "50000 100000"}, 0.5),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.cfs_quota_us": "25000", "cpu.cfs_period_us": "100000"}, 0.25),
        ({"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_processors_by_quota(tmp_path, files, quota):
    """A control group's quota counts, version 1 or 2; without one the affinity does."""
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    without = available_cpus(str(tmp_path / "nowhere"))
    assert available_cpus(str(tmp_path)) == (quota or without)


@pytest.mark.parametrize(("skew_s", "status"), [(0, OK), (-100, OK), (181, WARNING), (-3600, WARNING)])
def test_a_wrong_clock_is_a_warning(skew_s, status):
    """Against the service's Date header; three minutes are forgiven."""
    finding = judge_clock(Answer(0.01, None, 1e9, 1e9 + skew_s))
    assert (finding.status, finding.figures["skew_s"]) == (status, skew_s)
    assert judge_clock(Answer(0.01, None, None, 1e9)).status == SKIPPED


@pytest.mark.parametrize(
    ("said", "credential", "part"),
    [
        ("403 AuthorizationPermissionMismatch", "workload-identity", "Storage Blob Data Reader"),
        ("403 AuthorizationPermissionMismatch", "workload-identity", "minutes ago"),
        ("403 AuthorizationFailure", "workload-identity", "network rules"),
        ("403 AuthenticationFailed", "account-key", "rotated"),
        ("403 AuthenticationFailed", "sas-token", "expired"),
        ("403 KeyBasedAuthenticationNotPermitted", "account-key", "workload identity"),
        ("401 InvalidAuthenticationInfo", "default", "AZURE_TENANT_ID"),
        ("401", "anonymous", "not public"),
        ("403", "", "may read"),
        ("", "account-key", "copy it again"),
    ],
)
def test_a_refusal_is_told_by_whose_fault_it_is(said, credential, part):
    """The service's code first, then the credential that was used."""
    error = errors.AccessDenied("az://c/m/config.json: access denied: the credential needs the role R", said)
    finding = unread("metadata", error, credential)
    assert (finding.status, finding.exit_code, finding.detail) == (FAILED, 3, "az://c/m/config.json: access denied")
    assert part in finding.action


@pytest.mark.parametrize(
    ("error", "code", "part"),
    [
        (errors.BlobNotFound("az://c/m: nothing is there: check account, container and prefix"), 3, "container"),
        (errors.SourceUnavailable("az://c/m: reset"), 3, "network policy"),
        (errors.CheckpointError("model.safetensors: truncated: its tensors end at byte 9"), 4, "upload the checkpoint"),
        (errors.AccessDenied("no Azure credential was found: run az login"), 3, "az login"),
    ],
)
def test_other_errors_of_a_read_keep_their_code(error, code, part):
    """A checkpoint that contradicts itself is the model's fault, not the source's."""
    finding = unread("metadata", error, "default")
    assert (finding.exit_code, part in finding.action) == (code, True)


def test_the_cause_of_a_broken_checkpoint_is_no_advice():
    """Its errors say what is wrong behind their last colon, which stays in the finding."""
    text = "model.safetensors: its header claims 9 bytes, the file has 8: truncated, or not a safetensors file"
    assert unread("metadata", errors.CheckpointError(text), "").detail == text


def test_a_sas_token_that_has_ended_fails_and_is_not_shown():
    """Its end is in it, signed; the rest of it is nobody's business."""
    azure = AzureOptions(sas_token=f"?sv=1&sig=s3cret&se={(NOW + timedelta(hours=1)).isoformat()[:19]}Z")
    assert judge_credential("sas-token", azure, NOW).figures["expires_in_s"] == 3600
    ended = judge_credential("sas-token", azure, NOW + timedelta(hours=2))
    assert (ended.status, ended.exit_code) == (FAILED, 3)
    assert "s3cret" not in repr(ended)
    assert sas_expiry("sv=1&si=policy&sig=s") is None


def test_half_an_identity_is_a_warning_where_a_client_secret_may_be_meant():
    """The reading of metadata decides; what is missing is said before."""
    finding = judge_credential("default", AzureOptions(client_id="c", tenant_id="t"), NOW)
    assert finding.status == WARNING
    assert "AZURE_FEDERATED_TOKEN_FILE is not set" in finding.detail
    assert 'azure.workload.identity/use="true"' in finding.action


def test_a_model_for_transformers_is_left_to_the_engine():
    """Neither accepted nor refused, and the memory is what the weights take in the dtype that is asked for."""
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "torch_dtype": "float32"}
    found = Description(
        {"config.json": json.dumps(config).encode(), "merges.txt": b""},
        (Entry("wte", "F32", (4, 2), "s", 8, 40),),
        (BlobVersion("s", 40, "e"),),
    )
    findings, need = judge_model(found, load([URI, "--device", "cpu"], {}))
    assert [(f.name, f.status) for f in findings] == [("model", WARNING), ("settings", SKIPPED), ("tokenizer", WARNING)]
    assert need == Need(32, 0, is_guarded=False)
    assert judge_model(found, load([URI, "--device", "cpu", "--dtype", "bfloat16"], {}))[1].weights_bytes == 16
    findings, need = judge_model(Description({}, found.entries, found.versions), Settings())
    assert [f.status for f in findings] == [FAILED, SKIPPED, FAILED]
    assert (findings[0].exit_code, need) == (4, None)


def test_the_most_basic_failure_decides():
    """The source before the model before the device, as serve would find them; warnings are no failures."""
    findings = [failed("gpu", 5, "d", "a"), failed("model", 4, "d", "a"), warning("disk", "d", "a"), skipped("x", "y")]
    assert exit_code(findings) == 4
    assert exit_code(findings[2:]) == 0
    assert exit_code([]) == 0


def test_the_table_is_aligned_and_plain_unless_a_terminal_reads_it():
    """Every detail begins in one column, what to do below it; no escape reaches a file."""
    findings = [ok("gpu", "seen"), failed("host-memory", 5, "short", "buy more")]
    first, second, third, *_, verdict = table("az://c/m", findings, coloured=False).splitlines()
    assert first.index("seen") == second.index("short") == third.index("->")
    assert "exit 5" in verdict
    assert "\x1b" not in table("u", findings, coloured=False)
    assert "\x1b[31mfailed" in table("u", findings, coloured=True)


def test_preflight_takes_the_command_line_of_serve():
    """The same words mean the same settings, and its own flags are no settings."""
    command = parse(["preflight", URI, "--json", "--timeout", "3", "--max-model-len", "8k", "--device", "cpu"], {})
    assert command.options == {"--json": True, "--timeout": 3.0}
    assert command.settings == load([URI, "--max-model-len", "8k", "--device", "cpu"], {})
    assert "flag --timeout: expected a number from 1 to 600" in message(["preflight", URI, "--timeout", "0"])


BYTES = st.integers(0, 1 << 60)
MAYBE = st.none() | BYTES
VERSIONS = st.tuples(st.integers(0, 99), st.integers(0, 99))
GPUS = st.builds(
    Gpu,
    st.text(),
    VERSIONS,
    VERSIONS,
    st.none() | st.text(),
    st.sampled_from(["DEFAULT", "PROHIBITED", "EXCLUSIVE_PROCESS", "7"]),
    st.text(),
    st.none() | st.builds(DeviceMemory, BYTES, BYTES),
    st.text(),
)
HOSTS = st.builds(
    Host,
    st.builds(HostMemory, BYTES, MAYBE),
    st.floats(0, 1e6),
    st.text(),
    MAYBE,
    st.booleans(),
    MAYBE,
    MAYBE,
    MAYBE,
    MAYBE,
    st.lists(st.text()).map(tuple),
    st.text(),
)
DEMANDS = st.builds(Demand, st.booleans(), st.booleans(), MAYBE, BYTES, BYTES, BYTES, cache_files=BYTES)
TORCHES = st.none() | st.builds(Torch, st.text(), st.none() | st.text())
NEEDS = st.builds(Need, BYTES, BYTES, st.booleans())
ANSWERS = st.builds(
    Answer, st.floats(0, 1e6), st.none() | st.text(), st.none() | st.floats(-1e12, 1e12), st.floats(-1e12, 1e12)
)
KINDS = [errors.SourceError, errors.AccessDenied, errors.BlobNotFound, errors.CheckpointError, errors.DeviceError]
ERRORS = st.builds(lambda kind, text: kind(text), st.sampled_from(KINDS), st.text()) | st.builds(
    errors.AccessDenied, st.text(), st.text()
)
CREDENTIALS = st.sampled_from(["sas-token", "account-key", "workload-identity", "default", "anonymous", "", "other"])


@given(
    gpu=GPUS,
    torch=TORCHES,
    host=HOSTS,
    demand=DEMANDS,
    need=st.none() | NEEDS,
    answer=ANSWERS,
    error=ERRORS,
    credential=CREDENTIALS,
    texts=st.tuples(st.text(), st.text(), st.text()),
    flags=st.tuples(st.booleans(), st.booleans()),
)
def test_no_figures_break_the_pure_part(gpu, torch, host, demand, need, answer, error, credential, texts, flags):
    """Whatever the machine says, there are findings of one line, something to do for what is not well, and one report."""
    fallback, on_gpu = flags
    azure = AzureOptions(sas_token=f"se={texts[0]}", client_id=texts[1] or None, federated_token_file=texts[2] or None)
    findings = [
        *judge_gpu(gpu, host_fallback=fallback),
        *no_gpu(texts[0], torch),
        judge_torch(torch, gpu, on_gpu=on_gpu),
        judge_memory(host.memory, demand, need, weights_in_host=fallback),
        *judge_host(host, demand),
        judge_connection(texts[0], answer),
        judge_clock(answer),
        judge_credential(credential, azure, NOW),
        judge_throughput(demand.chunks_bytes, answer.connect_s, 16),
        unread("metadata", error, credential),
        refused("source", error),
    ]
    if gpu.memory and need:
        findings.append(judge_room(gpu.memory, need))
    for finding in findings:
        assert "\n" not in finding.detail + finding.action
        assert (finding.status == FAILED) == (finding.exit_code in (3, 4, 5, 6))
    report = json.loads(as_json("az://c/m", "cuda", findings, 1.0))
    assert report["exit_code"] == exit_code(findings)
    assert [check["name"] for check in report["checks"]] == [finding.name for finding in findings]
    assert table("az://c/m", findings, coloured=True).endswith("\n")
