"""`push` from a Hugging Face repository into a real Azurite: which files, which commit, and what is there already."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from azure.storage.blob import ContainerClient, generate_container_sas

from streaming.options import SourceOptions
from streaming.upload import push
from tests.coldstream import ROOT
from tests.forked_command import coldstream
from tests.integration.push_hub.pushes import (
    PUSHED,
    REPO,
    SHARDS,
    blobs,
    check_whole,
    digests_of,
    etags_of,
    manifest_of,
    pushed,
    uri_of,
)
from tools.azurite import ACCOUNT_KEY, ACCOUNT_NAME
from tools.blob_server import BlobRequest


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
    path = {"PYTHONPATH": str(ROOT)}
    subprocess.run(
        command, cwd=tmp_path / "cwd", env={**os.environ, **environ, **path}, check=True, capture_output=True
    )
    assert (served.asked, served.cdn.requests) == ([], [])
    check_whole(container, checkpoint)
