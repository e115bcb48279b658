"""`push` from a hub that breaks: killed, cut off, made to wait, and given bytes that are not the repository's."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading

import pytest

from streaming.manifest import parse_manifest
from tests.coldstream import wait_for
from tests.e2e.test_refusals import check
from tests.forked_command import coldstream
from tests.integration.push_hub.pushes import MIB, REPO, SHARDS, Once, blobs, check_whole, pushed, uri_of
from tools.blob_server import BlobRequest, Fault


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
        Fault(cut_after_bytes=2 * MIB + 5, stalls_s=1.2),
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
    """A bad answer, then good ones: the push is whole."""
    faults.play = Once(SHARDS[0], fault)
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
