"""What the Dockerfile says is what hadolint, pyproject.toml, constraints.txt and k8s/ say; nothing else gets into it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.coldstream import ROOT
from tests.image.private_index import private_index
from tests.manifests import VARIANTS, environment, pods

TARGETS = ("cpu", "cuda")
# Variables that lead to what nobody writes.
READ = ("PATH", "COLDSTREAM_KERNELS_DIR", "TRITON_LIBCUDA_PATH")


def stages():
    """Instructions by stage: lists of (word, rest), with those of the stages that it is from."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", "")
    found = {"${BASE_IMAGE}": []}
    for line in filter(None, text.splitlines()):
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            origin, name = re.fullmatch(r"(\S+) AS (\w+)", rest).groups()
            found[name] = list(found[origin])
        elif name := next(reversed(found)):
            found[name].append((word, rest))
    return found


def said(target, word):
    """What all instructions of a kind say, in order."""
    return [rest for each, rest in stages()[target] if each == word]


def pairs(target, word):
    """NAME=value of all ENV, LABEL or ARG of a target."""
    return dict(part.split("=", 1) for rest in said(target, word) for part in shlex.split(rest))


def project():
    """The table [project] of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def ours():
    """Pod specs and containers of k8s/ that run the image."""
    for variant in VARIANTS:
        for _, template in pods(variant):
            (container,) = template["spec"]["containers"]
            if container["command"] == ["coldstream"]:
                yield variant, template, container


def test_hadolint_has_nothing_to_say():
    """What is ignored is ignored in the file, with a reason."""
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("", 0)


@pytest.mark.parametrize("target", TARGETS)
def test_the_command_is_the_package_s(target):
    """Exec form, found by the name that k8s/ uses too; torch of the version that was tested."""
    (entrypoint,) = said(target, "ENTRYPOINT")
    (program,) = json.loads(entrypoint)
    assert [json.loads(each) for each in said(target, "CMD")] == [["serve"]]
    assert Path(program).name in project()["scripts"]
    assert str(Path(program).parent) == pairs(target, "ENV")["PATH"].split(":")[0]
    assert f"torch=={pairs(target, 'ARG')['TORCH_VERSION']}\n" in (ROOT / "constraints.txt").read_text()


@pytest.mark.parametrize("target", TARGETS)
def test_labels_are_those_of_the_project(target):
    """Title, description, version, licence."""
    labels = pairs(target, "LABEL")
    names = {"title": "name", "description": "description", "version": "version", "licenses": "license"}
    assert {name: labels[f"org.opencontainers.image.{name}"] for name in names} == {
        name: project()[field] for name, field in names.items()
    }


@pytest.mark.parametrize("target", TARGETS)
def test_the_user_and_the_port_are_those_of_every_pod(target):
    """And the user has a name, which libraries ask for."""
    (user,) = said(target, "USER")
    assert stages()[target][-1] == ("USER", user)
    uid, gid = map(int, user.split(":"))
    assert f"--uid {uid} --gid {gid}" in " ".join(said(target, "RUN"))
    for _, template, container in ours():
        security = template["spec"]["securityContext"]
        assert (security["runAsUser"], security["runAsGroup"]) == (uid, gid)
        for port in container.get("ports", []):
            assert said(target, "EXPOSE") == [str(port["containerPort"])]


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_written_goes_where_every_pod_has_a_volume(target):
    """Every folder of the image's variables is the pod's, too, or below one that it mounts."""
    written = {name: text for name, text in pairs(target, "ENV").items() if text.startswith("/") and name not in READ}
    assert {"HOME", "TMPDIR", "TRITON_CACHE_DIR"} <= written.keys()
    for variant, template, container in ours():
        variables = environment(variant, template)
        mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert {name: variables.get(name, text) for name, text in written.items()} == written
        assert all(any(Path(text).is_relative_to(mount) for mount in mounts) for text in written.values())


@pytest.mark.parametrize(
    ("program", "secret"), [(r"\bpip install|/install --[er]", "pip.conf"), (r"\bapt-get install", "sources.list")]
)
def test_whoever_fetches_packages_may_have_a_secret(program, secret):
    """Mounted for this one instruction, where it is given; and no argument or variable is asked to hold one."""
    runs = [rest for name in ("build", "kernels", *TARGETS) for rest in said(name, "RUN")]
    fetching = [rest for rest in runs if re.search(program, rest)]
    assert fetching
    assert all(f"--mount=type=secret,id={secret} " in rest for rest in fetching)
    assert not any("required" in rest for rest in runs)
    assert all("PIP" not in name for target in TARGETS for name in (pairs(target, "ENV") | pairs(target, "ARG")))


def test_pip_has_a_password_for_the_address_of_torch(tmp_path):
    """An argument names another index of the host without it: pip takes that of its configuration's `index-url`."""
    with private_index() as index:
        (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = {index.address}\n")
        scheme, address = index.address.split("://")
        argument = f"{scheme}://{address.partition('@')[2].replace('simple', 'pytorch/simple')}"
        words = [
            "download",
            "--disable-pip-version-check",
            "--no-deps",
            "--extra-index-url",
            argument,
            "nothing-of-this-name",
        ]
        environ = {"PIP_CONFIG_FILE": str(tmp_path / "pip.conf"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
        subprocess.run(
            [sys.executable, "-m", "pip", *words], env=environ, cwd=tmp_path, capture_output=True, check=False
        )
    assert index.asked == {"/simple/nothing-of-this-name/", "/pytorch/simple/nothing-of-this-name/"}
    assert index.refused == []


def test_nothing_is_sent_to_the_build_but_what_is_copied():
    """An ignore file that begins with everything: no weights, history, settings of clusters or tests; and each copied path is there."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    copied = {
        path.split("/")[0]
        for name in ("build", "wheel", "kernels", *TARGETS)
        for rest in said(name, "COPY")
        if not rest.startswith("--from=")
        for path in rest.split()[:-1]
    }
    assert lines[0] == "*"
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == copied | {"Dockerfile"}
    assert all((ROOT / path).exists() for path in copied)
    assert {"**/__pycache__", "**/*.pyc"} <= set(lines[1:])


def test_no_folder_that_is_sent_has_anything_but_code():
    """Python, the page's files, the installer, models' configs: nothing that could be a key or a weight."""
    listed = subprocess.run(
        ["git", "ls-files", "app", "streaming", "image"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    kinds = {Path(path).suffix for path in listed.stdout.splitlines()}
    assert kinds <= {"", ".py", ".html", ".css", ".js", ".svg", ".typed", ".yaml", ".json"}


def test_every_package_that_the_build_installs_is_pinned():
    """Its own tools as well as what the project needs; Triton's version is torch's word."""
    pinned = set(re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    (install,) = (rest for rest in said("build", "RUN"))
    tools = re.search(r"constraints\.txt ([a-z -]+) &&", install)[1].split()
    needed = {*project()["dependencies"], *project()["optional-dependencies"]["otel"], *tools}
    assert {"cyclonedx-bom", "hatchling"} <= needed <= pinned
