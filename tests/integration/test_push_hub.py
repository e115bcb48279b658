"""`push` from a Hugging Face repository: the real client against a hub of ours, into a real Azurite."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from azure.storage.blob import ContainerClient, generate_container_sas
from safetensors.numpy import save_file

from streaming.manifest import Manifest, parse_manifest
from streaming.options import SourceOptions
from streaming.upload import push
from tests.checkpoints import write_index
from tests.coldstream import wait_for
from tests.e2e.test_refusals import check, coldstream
from tests.hub import SIGNATURE, Hub, hub
from tools.azurite import ACCOUNT_KEY, ACCOUNT_NAME, Azurite
from tools.blob_server import BlobRequest, Fault
from tools.ports import free_port

REPO = "org/tiny-model"
TOKEN = "hf_s3cr3ttoken"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
SMALL = ("config.json", "model.safetensors.index.json", "special_tokens_map.json", "tokenizer.json")
PUSHED = sorted((*SHARDS, *SMALL))
MIB = 1 << 20


@dataclass
class Faults:
    """What the host of large files does, by a function that a test sets."""

    play: Callable[[BlobRequest], Fault | None] = lambda _: None

    def __call__(self, request: BlobRequest) -> Fault | None:
        """As a hook."""
        return self.play(request)


@dataclass
class Once:
    """Play a fault at the first request for a shard that begins at a byte, and keep where the requests for it began."""

    name: str
    fault: Fault
    times: int = 1

    def __post_init__(self) -> None:
        self.starts: list[int] = []

    def __call__(self, request: BlobRequest) -> Fault | None:
        """As a hook."""
        if not request.path.endswith(f"/{self.name}"):
            return None
        self.starts.append(request.start)
        return self.fault if len(self.starts) <= self.times else None


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def served(tmp_path: Path, faults: Faults) -> Iterator[Hub]:
    """A hub, whose large files a test can break."""
    with hub(tmp_path / "hub", hook=faults) as running:
        yield running


@pytest.fixture
def checkpoint(folder: Path) -> Path:
    """Two shards with an index, and what a repository has besides."""
    random = np.random.default_rng(7)
    (folder / "original").mkdir(parents=True)
    for number, shard in enumerate(SHARDS):
        save_file({f"t{number}": random.standard_normal(MIB + number, dtype=np.float32)}, folder / shard)
    write_index(folder, {f"t{number}": shard for number, shard in enumerate(SHARDS)})
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_bytes(random.bytes(3 * MIB))
    (folder / "special_tokens_map.json").write_bytes(b"")
    for name in (".gitattributes", "pytorch_model.bin", "consolidated.safetensors", "original/params.json"):
        (folder / name).write_text("left out")
    return folder


@pytest.fixture
def commit(served: Hub, checkpoint: Path) -> str:
    """The checkpoint on the hub."""
    return served.commit(REPO, checkpoint)


@pytest.fixture
def container(azurite: Azurite) -> Iterator[ContainerClient]:
    """A container that does not exist yet, under a name of its own."""
    with ContainerClient.from_connection_string(azurite.connection_string, f"hub-{uuid.uuid4().hex}") as client:
        yield client


@pytest.fixture
def environ(served: Hub, azurite: Azurite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The way to both, and nothing of this machine's own."""
    for name in os.environ:
        if name.startswith(("HF_", "HUGGING")):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    variables = {"HF_ENDPOINT": served.url, "HF_HOME": str(home), "TMPDIR": str(home), "HF_TOKEN": TOKEN}
    return {"AZURE_STORAGE_CONNECTION_STRING": azurite.connection_string, **variables}


def uri_of(container: ContainerClient) -> str:
    return f"az://{container.container_name}/llm"


def pushed(container: ContainerClient, environ: dict[str, str], *flags: str, source: str = REPO) -> str:
    """Push it; gives what was said."""
    done = coldstream("push", source, uri_of(container), *flags, environ=environ)
    assert done.returncode == 0, done.stderr
    return done.stdout


def blobs(container: ContainerClient) -> dict[str, bytes]:
    """Every blob, by its name under the prefix."""
    names = [name.removeprefix("llm/") for name in container.list_blob_names()]
    return {name: container.download_blob(f"llm/{name}").readall() for name in names}


def etags_of(container: ContainerClient) -> dict[str, str]:
    return {blob.name.removeprefix("llm/"): blob.etag for blob in container.list_blobs()}


def manifest_of(container: ContainerClient) -> Manifest:
    return parse_manifest(blobs(container)["coldstream.json"])


def digests_of(manifest: Manifest) -> dict[str, tuple[str, int, str, bytes]]:
    files = manifest.files.items()
    return {name: (file.sha256, file.data_start, file.header_sha256, file.crc64nvme) for name, file in files}


def check_whole(container: ContainerClient, folder: Path) -> None:
    """The container holds what of this folder serves, and says so."""
    found = blobs(container)
    manifest = parse_manifest(found.pop("coldstream.json"))
    assert found == {name: (folder / name).read_bytes() for name in PUSHED}
    etags = etags_of(container)
    assert {name: file.etag for name, file in manifest.files.items()} == {n: etags[n].strip('"') for n in PUSHED}


def test_a_repository_is_pushed_as_a_folder_of_its_files_is(
    commit, container, environ, checkpoint, azurite, azurite_source: SourceOptions
):
    """Its bytes are in the container, and the manifest has a folder's digests, beside repository and commit."""
    said = pushed(container, environ)
    check_whole(container, checkpoint)
    total = sum((checkpoint / name).stat().st_size for name in PUSHED)
    assert said == f"pushed {len(PUSHED)} files ({total} bytes) to {uri_of(container)}, 0 were there already\n"
    name = f"{container.container_name}-folder"
    push(checkpoint, f"az://{name}/llm", azurite_source)
    with ContainerClient.from_connection_string(azurite.connection_string, name) as other:
        of_folder = manifest_of(other)
        assert b'"source"' not in blobs(other)["coldstream.json"]
    manifest = manifest_of(container)
    assert (manifest.source, manifest.block_bytes) == (f"hf://{REPO}@{commit}", of_folder.block_bytes)
    assert digests_of(manifest) == digests_of(of_folder)


def test_every_blob_has_its_md5(commit, container, environ, checkpoint):
    """What Azure keeps of a blob is the MD5 of the file, as a push of a folder leaves it."""
    pushed(container, environ)
    stored = {blob.name: bytes(blob.content_settings.content_md5) for blob in container.list_blobs()}
    assert {name: stored[f"llm/{name}"] for name in PUSHED} == {
        name: hashlib.md5((checkpoint / name).read_bytes()).digest() for name in PUSHED
    }


def test_a_second_push_sends_nothing_and_fetches_nothing(served, commit, container, environ):
    """What is there as the manifest has it is known by its digest or its commit; the index alone is looked at again."""
    pushed(container, environ)
    etags = etags_of(container)
    served.forget()
    assert f"pushed 0 files (0 bytes) to {uri_of(container)}, {len(PUSHED)} were there already" in pushed(
        container, environ
    )
    assert etags_of(container) == etags
    assert (served.asked, served.cdn.requests) == (["model.safetensors.index.json"], [])


def test_what_a_folder_left_there_is_known(
    served,
    commit,
    container,
    environ,
    checkpoint,
    azurite_source: SourceOptions,
):
    """Weights that were pushed from a folder are not fetched from the hub, nor the other way round."""
    push(checkpoint, uri_of(container), azurite_source)
    pushed(container, environ)
    assert served.cdn.requests == []
    assert push(checkpoint, uri_of(container), azurite_source).skipped == len(PUSHED)


def test_a_blob_that_was_changed_is_sent_again(served, commit, container, environ, checkpoint):
    """What the manifest says of an older version of a blob is not believed of this one."""
    pushed(container, environ)
    container.upload_blob(f"llm/{SHARDS[0]}", bytes((checkpoint / SHARDS[0]).stat().st_size), overwrite=True)
    served.forget()
    assert "pushed 1 files" in pushed(container, environ)
    check_whole(container, checkpoint)
    assert served.fetched(SHARDS[1]) == 0


def test_a_manifest_that_is_none_is_replaced(commit, container, environ, checkpoint):
    """Nothing is known of the files then: all of them are sent."""
    container.create_container()
    container.upload_blob("llm/coldstream.json", b"{}")
    container.upload_blob(f"llm/{SHARDS[0]}", (checkpoint / SHARDS[0]).read_bytes())
    assert f"pushed {len(PUSHED)} files" in pushed(container, environ)
    check_whole(container, checkpoint)


def test_a_credential_that_may_not_delete_is_enough(commit, container, environ, checkpoint, azurite):
    """The notes of a push that is whole stay there then, and a line of the log says so."""
    container.create_container()
    name, expiry = container.container_name, datetime.now(UTC) + timedelta(hours=1)
    sas = generate_container_sas(ACCOUNT_NAME, name, ACCOUNT_KEY, permission="rlcw", expiry=expiry)
    azure = {
        "AZURE_STORAGE_CONNECTION_STRING": "",
        "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT_NAME,
        "AZURE_STORAGE_BLOB_ENDPOINT": azurite.endpoint,
        "AZURE_STORAGE_SAS_TOKEN": sas,
    }
    done = coldstream("push", REPO, uri_of(container), environ={**environ, **azure})
    assert done.returncode == 0, done.stderr
    assert "coldstream.partial.json stays there" in done.stderr
    container.delete_blob("llm/coldstream.partial.json")
    check_whole(container, checkpoint)


def test_of_a_newer_commit_only_what_changed_is_fetched(served, commit, container, environ, checkpoint):
    """A shard with the same SHA-256 stays; the manifest tells the new commit."""
    pushed(container, environ)
    content = bytearray((checkpoint / SHARDS[1]).read_bytes())
    content[-1] ^= 1
    (checkpoint / SHARDS[1]).write_bytes(content)
    newer = served.commit(REPO, checkpoint)
    served.forget()
    pushed(container, environ)
    check_whole(container, checkpoint)
    assert {Path(each.path).name for each in served.cdn.requests} == {SHARDS[1]}
    assert newer != commit
    assert manifest_of(container).source == f"hf://{REPO}@{newer}"


@pytest.mark.parametrize("words", [(f"hf://{REPO}@v1",), (REPO, "--revision", "v1"), (f"hf://{REPO}", "--revision=v1")])
def test_a_revision_is_what_was_asked_for(served, commit, container, environ, checkpoint, words):
    """A tag is found by the flag and in the URI, whatever the main branch is."""
    (checkpoint / "config.json").write_text("{}")
    tagged = served.commit(REPO, checkpoint, "v1")
    source, *flags = words
    pushed(container, environ, *flags, source=source)
    check_whole(container, checkpoint)
    assert manifest_of(container).source == f"hf://{REPO}@{tagged}"


def test_a_push_never_mixes_two_commits(served, commit, container, environ, checkpoint, faults):
    """A branch that moves while its files are read: all of them are the commit's that it was at first."""
    newer = checkpoint.parent / "newer"
    shutil.copytree(checkpoint, newer)
    (newer / "config.json").write_text("{}")
    (newer / SHARDS[1]).write_bytes((checkpoint / SHARDS[0]).read_bytes())
    moved = threading.Lock()

    def move(_: BlobRequest) -> None:
        with moved:
            if len(served.repositories[REPO].commits) == 1:
                served.commit(REPO, newer)

    faults.play = move
    pushed(container, environ)
    assert len(served.repositories[REPO].commits) == 2
    check_whole(container, checkpoint)
    assert manifest_of(container).source == f"hf://{REPO}@{commit}"


def test_a_folder_of_that_name_wins(served, commit, container, environ, checkpoint, tmp_path):
    """`org/name` is the folder where there is one, as in transformers; `hf://` is the hub."""
    there = tmp_path / "cwd" / REPO
    shutil.copytree(checkpoint, there)
    command = [sys.executable, "-m", "app", "push", REPO, uri_of(container)]
    path = {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run(
        command, cwd=tmp_path / "cwd", env={**os.environ, **environ, **path}, check=True, capture_output=True
    )
    assert (served.asked, served.cdn.requests) == ([], [])
    check_whole(container, checkpoint)


def test_a_killed_push_is_repeated_without_what_it_had_done(served, commit, container, environ, checkpoint, faults):
    """SIGKILL with one shard whole and another halfway: no manifest; the next push fetches all but the whole one."""
    killed = threading.Event()

    def stall(request: BlobRequest) -> Fault | None:
        if not request.path.endswith(SHARDS[1]) or killed.is_set():
            return None
        # Half of it comes; then nothing until the process is gone.
        return Fault(cut_after_bytes=2 * MIB, stalls_s=60 if not killed.wait(0) else 0)

    faults.play = stall
    command = [sys.executable, "-P", "-m", "app", "push", REPO, uri_of(container), "--chunk-mib", "1"]
    partial = container.get_blob_client("llm/coldstream.partial.json")
    half = container.get_blob_client(f"llm/{SHARDS[1]}")
    with subprocess.Popen(command, env={**os.environ, **environ}, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: partial.exists() and half.get_block_list("uncommitted")[1])
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    killed.set()
    found = blobs(container)
    assert found.keys() == {SHARDS[0], "coldstream.partial.json"}
    assert parse_manifest(found["coldstream.partial.json"]).source == f"hf://{REPO}@{commit}"

    served.forget()
    assert "1 were there already" in pushed(container, environ)
    check_whole(container, checkpoint)
    assert served.fetched(SHARDS[0]) == 0
    assert served.fetched(SHARDS[1]) == (checkpoint / SHARDS[1]).stat().st_size


@pytest.mark.parametrize("name", [SHARDS[0], "config.json"])
def test_bytes_that_are_not_the_hubs_are_refused(served, commit, container, environ, checkpoint, name):
    """A flipped bit: exit code 4, the file and both digests on one line; it is not stored, and no manifest is."""
    announced = (served.repositories[REPO].commits[commit] / name).read_bytes()
    flipped = bytearray(announced)
    flipped[len(flipped) // 2] ^= 4
    served.tampered[name] = bytes(flipped)
    done = coldstream("push", REPO, uri_of(container), environ=environ)

    def digest(content: bytes) -> str:
        git = b"blob %d\0" % len(content)
        return hashlib.sha256(content).hexdigest() if name in SHARDS else hashlib.sha1(git + content).hexdigest()

    check(done, 4, name, digest(bytes(flipped)), digest(announced))
    assert not {name, "coldstream.json"} & blobs(container).keys()
    served.tampered.clear()
    pushed(container, environ)
    check_whole(container, checkpoint)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(cut_after_bytes=2 * MIB + 5),
        Fault(cut_after_bytes=2 * MIB + 5, resets=True),
        # Nothing came for longer than a retry may wait: that time is not the retry's.
        Fault(cut_after_bytes=2 * MIB + 5, stalls_s=2),
    ],
    ids=["cut", "reset", "stalled"],
)
def test_a_broken_connection_goes_on_where_it_broke(commit, container, environ, checkpoint, faults, fault):
    """The next request asks for what had not come, and no byte comes twice but what was in the socket."""
    faults.play = broken = Once(SHARDS[0], fault)
    pushed(container, environ, "--retry-timeout", "1")
    check_whole(container, checkpoint)
    first, second = broken.starts
    assert first == 0
    # A reset may take with it what the client had not read yet.
    assert second == 2 * MIB + 5 if not fault.resets else 0 < second <= 2 * MIB + 5


@pytest.mark.parametrize(
    "fault",
    [
        Fault(cut_after_bytes=0),
        Fault(cut_after_bytes=0, resets=True),
        Fault(status=500),
        Fault(status=503, headers={"Retry-After": "1"}),
        Fault(status=429, headers={"Retry-After": "1"}, body=b"slowly"),
        Fault(ignores_range=True),
    ],
    ids=["closed", "reset", "500", "503", "429", "whole"],
)
def test_what_passes_is_waited_for(commit, container, environ, checkpoint, faults, fault):
    """Two bad answers of a kind, then good ones: the push is whole."""
    faults.play = Once(SHARDS[0], fault, times=2)
    pushed(container, environ)
    check_whole(container, checkpoint)


def test_a_whole_answer_to_a_later_range_is_cut_to_it(commit, container, environ, checkpoint, faults):
    """A host that forgets the range after a broken connection: its first bytes are not taken for the next ones."""
    starts: list[int] = []

    def play(request: BlobRequest) -> Fault | None:
        if not request.path.endswith(SHARDS[0]):
            return None
        starts.append(request.start)
        return Fault(cut_after_bytes=MIB) if len(starts) == 1 else Fault(ignores_range=True)

    faults.play = play
    pushed(container, environ)
    assert starts == [0, MIB]
    check_whole(container, checkpoint)


def test_the_hubs_wish_to_wait_is_told_where_it_is_too_long(commit, container, environ, faults):
    """429 for ten minutes is more than `--retry-timeout`: the push ends at once and says for how long."""
    faults.play = Once(SHARDS[0], Fault(status=429, headers={"Retry-After": "600"}), times=99)
    done = coldstream("push", REPO, uri_of(container), environ=environ)
    check(done, 3, SHARDS[0], "429", "600 s", "push again")
    assert "coldstream.json" not in blobs(container)


def test_a_host_that_never_answers_is_given_up(commit, container, environ, faults):
    """As many retries as `--max-retries` says, then one line."""
    faults.play = broken = Once(SHARDS[0], Fault(cut_after_bytes=0), times=99)
    done = coldstream("push", REPO, uri_of(container), "--max-retries", "2", environ=environ)
    check(done, 3, SHARDS[0], "after 2 retries", "HF_ENDPOINT")
    assert len(broken.starts) == 3


def gated(running: Hub) -> None:
    running.repositories[REPO].token = "hf_another"


REFUSALS: dict[str, tuple[list[str], Callable[[Hub], object], dict[str, str], int, tuple[str, ...]]] = {
    "gated": ([REPO], gated, {}, 3, ("gated", "accept its licence", "HF_TOKEN")),
    "not there": (["org/nothing"], lambda _: None, {}, 3, ("org/nothing", "no such repository", "HF_TOKEN")),
    "no revision": (["--revision", "v9", REPO], lambda _: None, {}, 3, (REPO, "no such branch, tag or commit")),
    "401": ([REPO], lambda h: h.answers.update(info=(401, {})), {}, 3, ("access denied (401)", "HF_TOKEN")),
    "403": ([REPO], lambda h: h.answers.update(file=(403, {})), {}, 3, ("access denied (403)", "HF_TOKEN")),
    "404": ([REPO], lambda h: h.answers.update(file=(404, {})), {}, 3, ("answered 404",)),
    "nobody": ([REPO], lambda _: None, {"HF_ENDPOINT": f"http://127.0.0.1:{free_port()}"}, 3, ("refused", REPO)),
    "a password": (
        [REPO],
        lambda _: None,
        {"HF_ENDPOINT": f"http://user:{TOKEN}@127.0.0.1:{free_port()}"},
        3,
        ("refused", "http://127.0.0.1:"),
    ),
    "no name": ([REPO], lambda _: None, {"HF_ENDPOINT": "http://hub.invalid"}, 3, ("http://hub.invalid", REPO)),
    "no URL": ([REPO], lambda _: None, {"HF_ENDPOINT": "nonsense"}, 3, ("HF_ENDPOINT",)),
    "not a hub": ([REPO], lambda h: h.answers.update(info=(200, {})), {}, 3, ("hub",)),
    "offline": ([REPO], lambda _: None, {"HF_HUB_OFFLINE": "1"}, 3, ("HF_HUB_OFFLINE",)),
    "bad token": ([REPO], lambda _: None, {"HF_TOKEN": f"{TOKEN}\x01é"}, 3, ("HF_TOKEN",)),
    "datasets": (["hf://datasets/org/name"], lambda _: None, {}, 3, ("hf://org/name@revision",)),
    "two revisions": ([f"hf://{REPO}@a", "--revision", "b"], lambda _: None, {}, 3, ("keep one",)),
    "two dashes": (["org/na--me"], lambda _: None, {}, 3, ("org/na--me",)),
    "no folder": (["nowhere"], lambda _: None, {}, 4, ("nowhere", "no such folder", "hf://")),
    "a folder's revision": (["/tmp", "--revision", "v1"], lambda _: None, {}, 3, ("--revision",)),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_pushed_is_one_line(served, commit, container, environ, case):
    """Gated, missing, unreachable or mistyped: an exit code, what to do, no traceback, no secret."""
    words, prepare, variables, exit_code, parts = REFUSALS[case]
    prepare(served)
    flags = ("--max-retries", "1", "--log-level", "debug")
    done = coldstream("push", *words, uri_of(container), *flags, environ={**environ, **variables})
    check(done, exit_code, *parts)
    assert not any(secret in done.stdout + done.stderr for secret in (TOKEN, SIGNATURE))


def test_a_gated_repository_takes_the_token(served, commit, container, environ, checkpoint):
    """HF_TOKEN opens what is gated."""
    served.repositories[REPO].token = TOKEN
    pushed(container, environ)
    check_whole(container, checkpoint)


@pytest.mark.parametrize("fault", [None, Fault(status=403, body=b"<Error/>"), Fault(cut_after_bytes=0)])
def test_no_output_has_a_secret(served, commit, container, environ, faults, fault):
    """Neither the token nor a signed URL, in logs at their most talkative, also with HF_DEBUG, nor in what fails."""
    served.repositories[REPO].token = TOKEN
    if fault:
        faults.play = Once(SHARDS[0], fault, times=99)
    talkative = {"HF_DEBUG": "1", "HF_HUB_VERBOSITY": "debug"}
    words = ("push", REPO, uri_of(container), "--log-level", "debug", "--max-retries", "1")
    done = coldstream(*words, environ={**environ, **talkative})
    assert done.returncode == (3 if fault else 0), done.stderr
    assert served.cdn.requests
    said = done.stdout + done.stderr
    assert f"hf://{REPO} is at commit {commit}" in said
    assert not any(secret in said for secret in (TOKEN, SIGNATURE, "Signature="))


def test_weights_pass_through_a_bounded_memory_and_no_disk(served, folder, container, environ, tmp_path):
    """Of 160 MiB in four shards, no more is in memory than lanes and files hold, and nothing is written to a disk."""
    folder.mkdir()
    sizes = {"org/little": 1 << 10, "org/large": 40 * MIB}
    for repo_id, nbytes in sizes.items():
        for shard in range(4):
            save_file({f"t{shard}": np.zeros(nbytes, dtype=np.uint8)}, folder / f"{shard}.safetensors")
        served.commit(repo_id, folder)
    peaks = {repo_id: measured(repo_id, container, environ) for repo_id in sizes}
    lanes, files, chunk_bytes = 4, 4, MIB
    # Twice that, for what clients and allocator keep beside it.
    bound_bytes = 2 * (lanes + 2 * files) * chunk_bytes
    (little, _), (large, written) = peaks.values()
    assert large - little < bound_bytes
    assert written < MIB
    kept = [path.stat().st_size for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert sum(kept) < 64 << 10


def measured(repo_id: str, container: ContainerClient, environ: dict[str, str]) -> tuple[int, int]:
    """The most memory that a push had, and what it gave to disks, in bytes: as the kernel counted."""
    words = ["push", repo_id, f"az://{container.container_name}/{repo_id}", "--concurrency", "4", "--chunk-mib", "1"]
    code = (
        "import sys, re; from pathlib import Path; from app.__main__ import run; code = run(sys.argv[1:]);"
        "peak = re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1];"
        "written = re.search(r'write_bytes: (\\d+)', Path('/proc/self/io').read_text())[1];"
        "print('measured', peak, written); sys.exit(code)"
    )
    command = [sys.executable, "-B", "-c", code, *words]
    done = subprocess.run(command, env={**os.environ, **environ}, capture_output=True, text=True, check=True)
    peak_kib, written_bytes = done.stdout.splitlines()[-1].split()[1:]
    return int(peak_kib) << 10, int(written_bytes)
