"""The image for processors, built here and run by podman as the overlay `dev-cpu` says."""

from __future__ import annotations

import base64
import contextlib
import copy
import json
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import yaml

from tests.coldstream import wait_for
from tests.image.private_index import private_index
from tests.image.test_dockerfile import said
from tests.image.words import check_packages, said_inside
from tests.manifests import named
from tools.image import IMAGE
from tools.ports import free_port

pytestmark = [pytest.mark.image, pytest.mark.timeout(2400)]

DEV = "overlays/dev-cpu"
POD = "coldstream-pod-0"
BUILD = ("buildah", "build", "--isolation", "chroot", "--network", "host", "--no-cache")
MODEL = "smollm2-135m-instruct"
# What a container runtime mounts itself: devices, and files in which only root can write.
RUNTIME = re.compile(r"/(dev|proc|sys)(/.*)?|/etc/(hosts|hostname|resolv\.conf)|/run/(\.containerenv|secrets)")


def on_this_machine(azurite, port):
    """Deployment and ConfigMap for podman: this machine's network, no probes. And the Secret's name and data."""
    deployment, settings, secret = (
        copy.deepcopy(named(DEV, kind, name))
        for kind, name in (("Deployment", "coldstream"), ("ConfigMap", "coldstream"), ("Secret", "azurite"))
    )
    spec = deployment["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    spec["hostNetwork"] = True
    # It knows few of a pod's fields as variables.
    for variable in container["env"]:
        if field := variable.pop("valueFrom", None):
            variable["value"] = field["fieldRef"]["fieldPath"]
    # Podman's probes are timers of systemd, which asks with a program in the image; its pods have no hooks.
    for field in ("startupProbe", "livenessProbe", "readinessProbe", "lifecycle", "ports"):
        del container[field]
    settings["data"]["COLDSTREAM_PORT"] = str(port)
    connection = base64.b64encode(azurite.connection_string.encode()).decode()
    return [deployment, settings], secret["metadata"]["name"], {"AZURE_STORAGE_CONNECTION_STRING": connection}


class Pod:
    """The server's container, and its port on this machine."""

    def __init__(self, podman, name, client, grace_s):
        self.podman, self.name, self.client, self.grace_s = podman, name, client, grace_s

    def status(self, path):
        """Of one probe; None where nobody answers."""
        with contextlib.suppress(httpx.TransportError):
            return self.client.get(path).status_code
        return None

    def inspect(self, field):
        """A value of its state."""
        return self.podman.run("podman", "inspect", "--format", f"{{{{.State.{field}}}}}", self.name).strip()

    def process(self, file):
        """A file of its first process below /proc."""
        return Path("/proc", self.inspect("Pid"), file).read_text()

    def log(self):
        """What it wrote."""
        return self.podman.run("podman", "logs", self.name)


@pytest.fixture
def pod(podman, azurite, pushed_demo, tmp_path):
    """It runs for the length of a test."""
    port = free_port()
    objects, secret, data = on_this_machine(azurite, port)
    manifest, secret_file = tmp_path / "manifest.yaml", tmp_path / "secret.json"
    manifest.write_text(yaml.safe_dump_all(objects))
    # A Secret among the objects is kept as YAML by podman 4.3, which then asks it for JSON.
    secret_file.write_text(json.dumps(data))
    assert objects[1]["data"]["COLDSTREAM_MODEL"] == pushed_demo
    grace_s = objects[0]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    remove(podman, secret)  # a killed run's
    try:
        podman.run("podman", "secret", "create", secret, str(secret_file))
        podman.run("podman", "kube", "play", "--network", "host", str(manifest))
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield Pod(podman, f"{POD}-coldstream", client, grace_s)
    finally:
        remove(podman, secret)


def remove(podman, secret):
    """Pod and secret, where they are."""
    podman.run("podman", "pod", "rm", "--force", "--ignore", POD)
    if secret in podman.run("podman", "secret", "ls", "--format", "{{.Name}}").split():
        podman.run("podman", "secret", "rm", secret)


def test_the_pod_of_dev_cpu_lives_and_ends(pod):
    """Alive before it is ready, one answer, and a stream to its end after SIGTERM; without any right, on a file system that is read-only."""
    assert wait_for(lambda: pod.status("/livez"), 60) == 200
    assert pod.status("/health") == 503
    wait_for(lambda: pod.status("/health") == 200, 120)
    check_rights(pod)
    body = {"model": MODEL, "prompt": "The capital of France is", "temperature": 0}
    answer = pod.client.post("/v1/completions", json=body | {"max_tokens": 1}).json()
    assert answer["choices"][0]["text"] == " Paris"
    with ThreadPoolExecutor(1) as pool:
        longer = body | {"stream": True, "max_tokens": 64, "ignore_eos": True}
        with pod.client.stream("POST", "/v1/completions", json=longer) as stream:
            lines = stream.iter_lines()
            next(lines)
            ending = pool.submit(pod.podman.run, "podman", "stop", "--time", str(pod.grace_s), pod.name)
            rest = [line for line in lines if line]
        ending.result()
    assert '"finish_reason":"length"' in rest[-2]
    assert rest[-1] == "data: [DONE]"
    assert pod.inspect("ExitCode") == "0", pod.log()


def check_rights(pod):
    """A user without capabilities who can gain none, behind the runtime's filter of system calls; only the volume is written."""
    status = dict(line.split(":", 1) for line in pod.process("status").splitlines())
    assert status["Uid"].split() == status["Gid"].split() == ["65532"] * 4
    assert {name: int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == dict.fromkeys(
        ("CapPrm", "CapEff", "CapBnd", "CapAmb"), 0
    )
    assert (int(status["NoNewPrivs"]), int(status["Seccomp"])) == (1, 2)
    mounts = [line.split() for line in pod.process("mountinfo").splitlines()]
    writable = {mount[4] for mount in mounts if "rw" in mount[5].split(",") and not RUNTIME.fullmatch(mount[4])}
    assert writable == {"/tmp"}


@pytest.fixture(scope="module")
def inside(podman):
    """What `inside.py` says."""
    return said_inside(podman, IMAGE, "inside.py")


def test_every_import_is_bytecode_and_every_package_in_the_bill_of_materials(inside):
    """None of the build's among them."""
    check_packages(inside)


def test_the_image_has_what_the_server_needs_and_nothing_else(inside):
    """A user with a name; no compiler, no pip, no weights."""
    assert inside["user"] == "coldstream"
    assert inside["programs"] == ["apt-get", "coldstream"]
    assert inside["weights"] == []


def test_the_secret_of_the_build_was_used_and_is_nowhere(podman, own_index):
    """Every pip asked that index with its password; neither the layers nor the history have it, nor the file that had it."""
    assert {f"/simple/{name}/" for name in ("hatchling", "torch", "fastapi")} <= own_index.asked
    assert own_index.refused == []
    there = (b'"bomFormat": "CycloneDX"', b"CPU_TORCH_INDEX", b"type=secret,id=pip.conf")
    assert found_in_archive(podman, *there, *own_index.secrets, b"secrets/pip.conf") == set(there)


def found_in_archive(podman, *words):
    """Which of these words the whole image has: layers, which are not compressed here, history and labels."""
    found, rest = set(), b""
    command = podman.command("podman", "save", "--format", "docker-archive", IMAGE)
    with subprocess.Popen(command, stdout=subprocess.PIPE) as saving:
        while piece := saving.stdout.read(1 << 22):
            held = rest + piece
            found |= {word for word in words if word in held}
            rest = held[-max(map(len, words)) :]
    assert saving.returncode == 0
    return found


SECRETS = """\
FROM {image}
USER 0:0
RUN {mount_pip} test {is_there} /run/secrets/pip.conf
RUN {mount_apt} {choose_sources} && {{ apt-get update || true; }}
"""


@pytest.mark.parametrize("is_given", [False, True])
def test_a_secret_is_mounted_where_it_is_given(podman, tmp_path, is_given):
    """By the Dockerfile's own words; apt asks at the address of sources.list, with its password, and nowhere else."""
    (fetching,) = (rest for rest in said("kernels", "RUN") if "apt-get install" in rest)
    mount, choice = re.match(r"(--mount=\S+)", fetching)[1], re.search(r"if \[ -f .*?; fi", fetching)[0]
    mount_pip = "--mount=type=secret,id=pip.conf"
    assert mount_pip in "".join(said("cpu", "RUN"))
    dockerfile, sources = tmp_path / "Dockerfile", tmp_path / "sources.list"
    words = {"mount_pip": mount_pip, "mount_apt": mount, "is_there": "-s" if is_given else "! -e"}
    dockerfile.write_text(SECRETS.format(image=IMAGE, choose_sources=choice, **words))
    with private_index() as index:
        sources.write_text(f"deb {index.address} bookworm main\n")
        given = [f"--secret=id={name},src={sources}" for name in ("pip.conf", "sources.list")] if is_given else []
        try:
            podman.run(*BUILD, *given, "--tag", f"{IMAGE}-secrets", "--file", str(dockerfile), str(tmp_path))
        finally:
            podman.run("podman", "rmi", "--force", "--ignore", f"{IMAGE}-secrets")
    assert index.asked == (
        {"/simple/dists/bookworm/InRelease", "/simple/dists/bookworm/Release"} if is_given else set()
    )
    assert index.refused == []
