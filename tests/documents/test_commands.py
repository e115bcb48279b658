"""The commands that build and serve: what bash makes of them is what make, the Dockerfile and the settings take."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess

import pytest

from app.settings import parse
from tests.coldstream import ROOT
from tests.documents.pages import texts
from tests.documents.stand_ins import calls_of


def test_contributing_names_targets_of_make(tmp_path):
    """And make knows how to make each of them."""
    (block,) = texts("CONTRIBUTING.md", "Set up", "bash")
    calls = calls_of(block, ("make",), tmp_path)
    assert [call[1] for call in calls] == ["setup", "check", "test"]
    for call in calls:
        subprocess.run([*call, "--dry-run"], cwd=ROOT, check=True, capture_output=True)


def test_a_command_line_of_vllm_is_one_of_ours(tmp_path):
    """Word by word, behind the program's name; and ours takes it without a notice."""
    (block,) = texts("docs/migrating.md", "Coming from vLLM or SGLang", "bash")
    theirs, ours = calls_of(block, ("vllm", "coldstream"), tmp_path)
    assert (theirs[0], ours[0]) == ("vllm", "coldstream")
    assert theirs[1:] == ours[1:]
    assert parse(ours[1:], {}).settings.notices == ()


def docker_parser() -> argparse.ArgumentParser:
    """Of the words of docker's two commands that docs/image.md uses, which are buildah's and podman's too."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    build = commands.add_parser("build", allow_abbrev=False)
    for flag in ("--target", "--tag"):
        build.add_argument(flag, required=True)
    build.add_argument("--build-arg", action="append", default=[])
    build.add_argument("--secret", action="append", default=[])
    build.add_argument("--platform")
    build.add_argument("context")
    run = commands.add_parser("run", allow_abbrev=False)
    for flag in ("--rm", "--read-only"):
        run.add_argument(flag, action="store_true")
    for flag in ("--tmpfs", "--cap-drop", "--publish", "--volume"):
        run.add_argument(flag)
    run.add_argument("image")
    run.add_argument("words", nargs=argparse.REMAINDER)
    return parser


@pytest.fixture
def docker(tmp_path):
    """The calls of docker in docs/image.md."""
    (block,) = texts("docs/image.md", "The image", "bash")
    calls = calls_of(block, ("docker", "git"), tmp_path)
    assert ["git", "rev-parse", "HEAD"] in calls
    return [docker_parser().parse_args(words) for program, *words in calls if program == "docker"]


def test_the_image_is_built_of_what_the_dockerfile_has(docker):
    """Both targets, from the checkout's root, with arguments that the target declares."""
    *builds, _ = docker
    stages = dict(
        re.findall(r"^FROM \S+ AS (\w+)\n((?:(?!FROM).*\n)*)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    )
    assert {build.target for build in builds} == {"cuda", "cpu"} <= stages.keys()
    assert [build.context for build in builds] == [".", "."]
    for build in builds:
        declared = set(re.findall(r"^ARG (\w+)", stages[build.target], re.MULTILINE))
        assert {argument.partition("=")[0] for argument in build.build_arg} <= declared
    assert sum(len(build.build_arg) for build in builds) == 1


def test_an_index_of_ones_own_is_a_secret_that_the_dockerfile_mounts(tmp_path):
    """Both of them; and no address in an argument has a password."""
    (block,) = texts("docs/image.md", "An index of your own", "bash")
    ((program, *words),) = calls_of(block, ("docker",), tmp_path)
    build = docker_parser().parse_args(words)
    secrets = dict(re.fullmatch(r"id=([\w.]+),src=(\S+)", secret).groups() for secret in build.secret)
    mounted = set(re.findall(r"type=secret,id=(\S+)", (ROOT / "Dockerfile").read_text()))
    assert (program, secrets.keys()) == ("docker", mounted)
    assert build.target == "cuda"
    for argument in build.build_arg:
        name, _, address = argument.partition("=")
        assert re.search(rf"^ARG {name}\b", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
        assert "@" not in address


def test_the_image_is_run_as_it_was_built(docker):
    """By the tag of the block, read-only but for /tmp, on its port, with words that the server takes."""
    *builds, run = docker
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert run.image in {build.tag for build in builds}
    assert (run.rm, run.read_only, run.cap_drop, run.tmpfs) == (True, True, "ALL", "/tmp:exec")
    assert run.publish.split(":")[1] == re.search(r"^EXPOSE (\d+)$", dockerfile, re.MULTILINE)[1]
    settings = parse(run.words, {}).settings
    assert str(settings.server.port) == run.publish.split(":")[1]
    assert run.volume.split(":")[1:] == [settings.model.uri, "ro"]


def test_every_build_argument_is_in_the_table():
    """With the default that the Dockerfile has."""
    declared = dict(re.findall(r"^ARG (\w+)=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    table = re.findall(r"^\| (`[A-Z].*?) \| (.*?) \|", (ROOT / "docs" / "image.md").read_text(), re.MULTILINE)
    named = {name: value for cell, value in table for name in re.findall(r"`(\w+)`", cell)}
    assert named.keys() == declared.keys()
    for name in ("BASE_IMAGE", "TORCH_VERSION", "KERNEL_CAPABILITIES"):
        assert named[name] == f"`{declared[name]}`"
    for name in ("CPU_TORCH_INDEX", "CUDA_TORCH_INDEX"):
        assert f"`{declared[name].partition('.org/')[2]}`" in named[name]
    assert shlex.split(declared["REVISION"]) == [""]
    assert named["REVISION"] == "empty"
