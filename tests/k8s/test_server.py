"""What k8s/ says of the server is what the server knows: settings, probes, metrics, paths, memory and time to end."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import pytest

from app.api.probes import METRICS, PROBES
from app.settings import commands
from app.settings.parser import FORMS
from app.settings.sources import names_of
from app.settings.table import Row
from app.settings.tree import SECTIONS
from tests.manifests import K8S, OVERLAYS, PLACEHOLDER, VARIANTS, environment, expanded, named, pods, rendered
from tools.azurite import SETTINGS_PREFIXES

OURS = "coldstream"
AKS = [name for name in OVERLAYS if name.startswith("aks-")]
# With a model, so that `serve` has something to be asked for.
SERVED = [variant for variant in VARIANTS if variant.startswith("overlays/") or "aks" in variant]
# Read by others than the server's settings: torch's and Triton's libraries, OpenTelemetry, the Hub's client, the shell.
OTHERS = {
    "CUDA_CACHE_PATH",
    "HF_HOME",
    "HF_REPO",
    "HF_TOKEN",
    "HOME",
    "NODE_NAME",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_SERVICE_NAME",
    "POD_NAME",
    "POD_NAMESPACE",
    "POD_UID",
    "TMPDIR",
    "TRITON_CACHE_DIR",
    "XDG_CACHE_HOME",
}
UNITS = {"Mi": 1 << 20, "Gi": 1 << 30}


def quantity_bytes(text):
    """Bytes of such as 8Gi."""
    return int(text[:-2]) * UNITS[text[-2:]]


def ours(variant):
    """Pod templates that run coldstream: name, template, container."""
    for name, template in pods(variant):
        (container,) = template["spec"]["containers"]
        if container["command"] == [OURS]:
            yield name, template, container


def command(variant, template):
    """The command that a pod runs, read as the program reads it."""
    (container,) = template["spec"]["containers"]
    variables = environment(variant, template)
    return commands.parse([expanded(word, variables) for word in container["args"]], variables)


def server(variant):
    """The server's pod and container."""
    template = named(variant, "Deployment", OURS)["spec"]["template"]
    return template["spec"], template["spec"]["containers"][0]


@pytest.mark.parametrize("variant", SERVED)
def test_every_command_line_and_environment_is_read_without_a_word(variant):
    """Nothing in it is unknown, refused, without effect or replaced; server, preflight and upload mean one model."""
    read = {name: command(variant, template) for name, template, _ in ours(variant)}
    assert read.keys() >= {"Deployment/coldstream"}
    assert {name: each.settings.notices for name, each in read.items()} == dict.fromkeys(read, ())
    uris = {each.settings.model.uri for each in read.values()}
    assert len(uris) == 1
    if push := read.get("Job/coldstream-upload"):
        assert push.arguments[1] in uris
        assert not re.search(r"[$()]", push.arguments[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variable_is_known(variant):
    """One that looks like a setting is one; any other is known to be somebody else's."""
    settings = set(names_of(Row.variables))
    for _, template, _ in ours(variant):
        names = set(environment(variant, template))
        assert names - settings - OTHERS == set()
        assert {name for name in names & OTHERS if name.startswith(SETTINGS_PREFIXES)} <= {
            "OTEL_RESOURCE_ATTRIBUTES",
            "OTEL_SERVICE_NAME",
        }


def test_every_flag_that_is_written_is_known():
    """In manifests and in the README; kubectl's and az's own follow their names, or that of the README's word for kubectl."""
    known = {flag for form in FORMS.values() for flag in form.options} | set(names_of(Row.flags))
    for path in K8S.rglob("*"):
        if path.suffix in {".yaml", ".md"} and path.name != "azurite.yaml":
            lines = [line for line in path.read_text().splitlines() if not re.search(r"kube|`az ", line)]
            assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", "\n".join(lines))) <= known


@pytest.mark.parametrize("variant", VARIANTS)
def test_probes_ask_what_the_server_answers(variant):
    """Startup and liveness whether it lives, readiness whether it serves, at the port that it listens on."""
    _, container = server(variant)
    paths = {kind: container[kind]["httpGet"]["path"] for kind in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert paths == {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/health"}
    assert set(paths.values()) <= PROBES.keys()
    (port,) = container["ports"]
    assert port["containerPort"] == SECTIONS["server"]().port
    assert {container[kind]["httpGet"]["port"] for kind in paths} == {port["name"]}
    (service,) = named(variant, "Service", OURS)["spec"]["ports"]
    assert service["targetPort"] == port["name"]
    if "monitoring" in variant:
        (endpoint,) = named(variant, "PodMonitor", OURS)["spec"]["podMetricsEndpoints"]
        assert (endpoint["port"], endpoint["path"]) == (port["name"], METRICS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_grace_is_longer_than_the_hook_and_the_drain(variant):
    """With 5 s and more for the end itself; and a spot node's notice is enough for all of it."""
    spec, container = server(variant)
    # A base or a component by itself names no model.
    variables = {"COLDSTREAM_MODEL": "az://container/model", **environment(variant, {"spec": spec})}
    drain_s = commands.parse(container["args"], variables).settings.server.drain_timeout_s
    hook_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert hook_s >= 5
    assert spec["terminationGracePeriodSeconds"] >= hook_s + drain_s + 5
    if "spot" in variant:
        assert spec["terminationGracePeriodSeconds"] <= 25


@pytest.mark.parametrize("variant", VARIANTS)
def test_surge_decides_which_pod_goes_first(variant):
    """Without it the old one does: its GPU is the only one."""
    rolling = named(variant, "Deployment", OURS)["spec"]["strategy"]["rollingUpdate"]
    surges = "surge" in variant.replace("+", " ").split()
    assert (rolling["maxSurge"], rolling["maxUnavailable"]) == ((1, 0) if surges else (0, 1))


@pytest.mark.parametrize("variant", SERVED)
def test_memory_covers_the_chunks_on_their_way(variant):
    """And a cache's queue, beside 1 GiB for the processes, already by what is requested; with the defaults as the comment says."""
    spec, container = server(variant)
    storage = command(variant, {"spec": spec}).settings.storage
    pipeline, cache = storage.pipeline_options(), storage.cache_options()
    chunks_bytes = pipeline.chunks_held * pipeline.chunk_bytes
    queue_bytes = cache.queue_bytes if cache else 0
    resources = container["resources"]
    assert quantity_bytes(resources["requests"]["memory"]) >= chunks_bytes + queue_bytes + (1 << 30)
    assert quantity_bytes(resources["limits"]["memory"]) >= quantity_bytes(resources["requests"]["memory"])
    assert f"= {chunks_bytes >> 20} MiB at most" in (K8S / "base" / "deployment.yaml").read_text()


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_written_has_a_place(variant):
    """Every folder that a variable names lies on a volume, and volumes on the node's disk within the pod's share."""
    for _, template, container in ours(variant):
        mounts = [PurePosixPath(mount["mountPath"]) for mount in container["volumeMounts"]]
        variables = environment(variant, template)
        folders = [
            PurePosixPath(text) for name, text in variables.items() if text.startswith("/") and "URI" not in name
        ]
        assert {"HOME", "TMPDIR"} <= variables.keys()
        assert all(any(folder.is_relative_to(mount) for mount in mounts) for folder in folders)
        sizes = [volume["emptyDir"]["sizeLimit"] for volume in template["spec"]["volumes"] if "emptyDir" in volume]
        share_bytes = quantity_bytes(container["resources"]["limits"]["ephemeral-storage"])
        assert 0 < sum(map(quantity_bytes, sizes)) <= share_bytes


@pytest.mark.parametrize("variant", [variant for variant in SERVED if "base" not in variant])
def test_preflight_looks_from_where_the_server_would_be(variant):
    """Same nodes, disks, resources, identity, image and settings."""
    template = named(variant, "Job", "coldstream-preflight")["spec"]["template"]
    job, (spec, container) = template["spec"], server(variant)
    shared = ("serviceAccountName", "nodeSelector", "tolerations", "affinity", "volumes")
    assert {field: job.get(field) for field in shared} == {field: spec.get(field) for field in shared}
    (looking,) = job["containers"]
    shared = ("resources", "image", "envFrom", "volumeMounts", "securityContext")
    assert {field: looking[field] for field in shared} == {field: container[field] for field in shared}
    assert command(variant, template).settings == command(variant, {"spec": spec}).settings


@pytest.mark.parametrize("overlay", AKS)
def test_on_aks_server_and_upload_have_a_gpu_and_an_identity_each_its_own(overlay):
    """One GPU and its nodes for the server, and a label without which no pod gets a token."""
    variant = f"overlays/{overlay}"
    spec, container = server(variant)
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert overlay.removeprefix("aks-").upper() in spec["nodeSelector"]["node.kubernetes.io/instance-type"]
    for _, template, _ in ours(variant):
        assert template["metadata"]["labels"]["azure.workload.identity/use"] == "true"
        assert command(variant, template).settings.storage.azure_credential == "workload-identity"
    accounts = [named(variant, "ServiceAccount", name) for name in (OURS, "coldstream-uploader")]
    ids = [account["metadata"]["annotations"]["azure.workload.identity/client-id"] for account in accounts]
    assert ids == ["server-client-id", "uploader-client-id"]
    upload = named(variant, "Job", "coldstream-upload")["spec"]["template"]["spec"]
    assert upload["serviceAccountName"] == "coldstream-uploader"


@pytest.mark.parametrize("overlay", AKS)
def test_placeholders_are_those_that_the_readme_lists(overlay):
    """All of them in one file."""
    readme = (K8S / "README.md").read_text()
    listed = set(re.findall(r"\$(\w+)", re.search(r"^ours='(.*)'$", readme, re.MULTILINE)[1]))
    assert set(PLACEHOLDER.findall(rendered(f"overlays/{overlay}"))) == listed
    holders = [
        path for path in K8S.rglob("*") if path.suffix in {".yaml", ".env"} and PLACEHOLDER.search(path.read_text())
    ]
    assert [path.relative_to(K8S).as_posix() for path in holders] == ["components/aks/kustomization.yaml"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_belongs_to_a_step(overlay):
    """The README applies step by step, by this label."""
    for step in ("shared", "upload", "preflight", "server"):
        assert f"app.kubernetes.io/component: {step}\n" in rendered(f"overlays/{overlay}")
    for document in rendered(f"overlays/{overlay}").split("---\n"):
        assert re.search(r"^    app.kubernetes.io/component: (shared|upload|preflight|server)$", document, re.MULTILINE)


def test_the_cache_leaves_room_on_its_volume():
    """15 % of a file system stay free: what the cache may take fits in the rest."""
    spec, container = server("base+nvme-cache+aks")
    (volume,) = (volume for volume in spec["volumes"] if volume["name"] == "cache")
    claim = volume["ephemeral"]["volumeClaimTemplate"]["spec"]
    cache = command("base+nvme-cache+aks", {"spec": spec}).settings.storage.cache_options()
    assert cache.folder in {mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "cache"}
    assert cache.max_bytes <= 0.85 * quantity_bytes(claim["resources"]["requests"]["storage"])


@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if "overlays/" in variant])
def test_a_finished_preflight_keeps_a_disk_for_an_hour_at_most(variant):
    """It is deleted with its log, so only where its pod has a volume that the server's might find no room beside."""
    job = named(variant, "Job", "coldstream-preflight")["spec"]
    keeps = any("ephemeral" in volume for volume in job["template"]["spec"]["volumes"])
    assert keeps == ("nvme-cache" in variant)
    assert job.get("ttlSecondsAfterFinished") == (3600 if keeps else None)
