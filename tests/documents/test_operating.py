"""docs/operating.md's blocks: its commands push, its outputs are what the commands print, its YAML is a part of a pod."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from azure.core.exceptions import ResourceExistsError
from azure.storage.blob import BlobServiceClient

from app.settings import parse
from tests.documents.pages import texts
from tests.hub import hub
from tests.k8s.validation import validate
from tools.random_checkpoint import write_checkpoint

PROGRAMS = Path(sys.executable).parent
# Digests and numbers; and the words of preflight's checks that are about the machine and nothing else.
_FIGURE = re.compile(r"\b[0-9a-f]{16}\b|\d+(?:\.\d+)*")
_OF_THE_MACHINE = re.compile(r"^(torch|cpus|nvme|container)( +\w+ ).*")


def shape(line):
    """The line without what another machine would say otherwise."""
    return _FIGURE.sub("#", _OF_THE_MACHINE.sub(r"\1\2", line))


def bash(block, folder, environ):
    """What a block prints, run in a folder; it has to succeed."""
    path = f"{PROGRAMS}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=folder,
        env={**os.environ, **environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def coldstream(*words, environ):
    """A command that may fail: its output and exit code."""
    done = subprocess.run(
        [PROGRAMS / "coldstream", *words], env={**os.environ, **environ}, capture_output=True, text=True, timeout=60
    )
    return done.stdout, done.returncode


@pytest.fixture(scope="module")
def service(azurite):
    """A client of the blob service, with a container `models` and one of our own."""
    with BlobServiceClient.from_connection_string(azurite.connection_string) as client:
        for name in ("models", "documents"):
            with contextlib.suppress(ResourceExistsError):
                client.create_container(name)
        yield client


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder with two shards."""
    folder = tmp_path_factory.mktemp("documents") / "my-model"
    write_checkpoint(folder, "tiny", shards=2)
    return folder


def test_every_push_is_one(checkpoint, azure_environment, service, tmp_path, monkeypatch):
    """From a folder, and twice from a repository of the hub at a tag: but for the container as it stands."""
    (block,) = texts("docs/operating.md", "Push", "bash")
    shutil.copytree(checkpoint, tmp_path / "here" / "my-model")
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
        monkeypatch.delenv(name)
    with hub(tmp_path / "hub") as served:
        served.commit("org/name", checkpoint, "v1.0")
        environ = {**azure_environment, "HF_ENDPOINT": served.url, "HF_HOME": str(tmp_path / "home")}
        assert block.count("coldstream push ") == len(block.splitlines()) == 3
        bash(block.replace("az://models/", "az://documents/"), tmp_path / "here", environ)
        assert "config.json" in served.asked
    container = service.get_container_client("documents")
    pushed = [set(container.list_blob_names(name_starts_with=f"{name}/")) for name in ("my-model", "name")]
    assert {name.partition("/")[2] for name in pushed[0]} == {name.partition("/")[2] for name in pushed[1]}
    assert {"my-model/coldstream.json", "my-model/model-00002-of-00002.safetensors"} <= pushed[0]


def test_verify_prints_such_lines(checkpoint, azure_environment, service, tmp_path):
    """Of a checkpoint with a byte changed at rest: the files, the range with both digests, the sum."""
    (documented,) = texts("docs/operating.md", "Integrity", "text")
    bash(f"coldstream push {checkpoint} az://documents/verified", tmp_path, azure_environment)
    blob = service.get_blob_client("documents", "verified/model-00001-of-00002.safetensors")
    content = bytearray(blob.download_blob().readall())
    content[-1] ^= 1
    blob.upload_blob(bytes(content), overwrite=True)
    printed, code = coldstream("verify", "az://documents/verified", environ=azure_environment)
    assert code == 4
    shapes = [shape(line) for line in printed.splitlines()]
    expected = [shape(line) for line in documented.splitlines()]
    assert expected.pop(-2) == "..."
    positions = [shapes.index(line) for line in expected if line in shapes]
    assert [line for line in expected if line not in shapes] == []
    assert positions == sorted(positions)
    assert positions[-1] == len(shapes) - 1


@pytest.mark.usefixtures("service")
def test_preflight_prints_such_a_table(azure_environment):
    """For a checkpoint that is not there, on a CPU: the same checks, states and words, line by line."""
    (documented,) = texts("docs/operating.md", "Before it starts: preflight", "text")
    environ = {**azure_environment, "TMPDIR": "/tmp"}
    printed, code = coldstream("preflight", "az://models/llama", "--device", "cpu", environ=environ)
    assert code == 3
    assert [shape(line) for line in documented.splitlines()] == [shape(line) for line in printed.splitlines()]


@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_the_cache_is_part_of_a_pod(version):
    """A cluster takes it, the server takes its words, and the cache lies in the volume."""
    (block,) = texts("docs/operating.md", "A cache on the node's disk", "yaml")
    spec = yaml.safe_load(block)
    (container,) = spec["containers"]
    container |= {"name": "coldstream", "image": "coldstream"}
    validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "coldstream"}, "spec": spec}, version)
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in spec["volumes"]}
    assert parse(container["args"], {}).settings.storage.cache_dir == mounts["cache"]
