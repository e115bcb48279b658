"""docs/aks.md does what it says, twice: its commands in order, in a world that says no where Azure and a cluster do."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from base64 import b64decode
from pathlib import Path

import pytest

from tests.documents.pages import texts
from tests.manifests import K8S, PLACEHOLDER, named
from tests.walkthrough.azure import SUBSCRIPTION
from tests.walkthrough.client import COMMIT
from tests.walkthrough.guide import GUIDE, TOKEN, UP, flags_by_command, replaced

CONTAINER = f"/storageAccounts/coldstream{SUBSCRIPTION[:8]}/blobServices/default/containers/models"
IMAGE = f"coldstream{SUBSCRIPTION[:8]}.azurecr.io/coldstream:{COMMIT[:12]}"


def test_every_command_succeeds_every_time(walks):
    """In a bash session: no failure, no variable that is not set, no command that is not there."""
    for run, _ in walks:
        assert run.code == 0, run.errors
        assert "unbound variable" not in run.errors
        assert "not found" not in run.errors
    assert all(len(run.calls) > 70 for run, _ in walks[:5])


def test_the_second_time_changes_nothing(walks):
    """Azure has what it had, and the cluster's objects are the same."""
    first, second = walks[0].world, walks[1].world
    assert second.resources == first.resources
    assert second.objects == first.objects
    assert not any(call.has("az", part) for call in walks[1].run.calls for part in ("acr run", "nodepool add"))


def test_no_gpu_is_paid_for_in_a_pause(walks):
    """Its node is gone and the server with it; the weights stay."""
    _, world = walks[2]
    assert world.resources["pool/gpu"]["--node-count"] == "0"
    assert "Deployment/coldstream/coldstream" not in world.objects
    assert "model/az://models/phi-4" in world.resources


def test_everything_is_gone_at_the_end(walks):
    """Nothing that costs money is left, and to say so once more is no error."""
    for _, world in walks[3:]:
        assert {name.partition("/")[0] for name in world.resources} <= {
            "login",
            "extension",
            "feature",
            "provider",
            "context",
        }


def test_nothing_that_is_applied_has_a_placeholder(walks):
    """Every value is filled in, and what Kubernetes expands itself is left to it."""
    for world in (walks[0].world, walks[1].world):
        applied = "\n---\n".join(world.applied)
        assert PLACEHOLDER.findall(applied) == []
        for value in (IMAGE, "az://models/phi-4", "clientId-of-coldstream-server", "clientId-of-coldstream-uploader"):
            assert value in applied
        assert 'name: HF_REPO\n          value: "microsoft/phi-4"' in applied
        assert "$(HF_REPO)" in applied
        assert "$(COLDSTREAM_MODEL)" in applied


@pytest.mark.parametrize("number", range(5))
def test_a_job_is_deleted_before_it_is_applied(walks, number):
    """Otherwise it would not run again, or could not be changed."""
    run = walks[number].run
    applied = [n for n, call in enumerate(run.calls) if call.has("kubectl", "apply", "(shared, upload)")]
    assert len(applied) == 1
    assert run.index("kubectl", "delete job coldstream-upload --ignore-not-found") < applied[0]
    preflights = [n for n, call in enumerate(run.calls) if call.has("kubectl", "apply", "(shared, preflight)")]
    assert len(preflights) == (0 if number in (1, 2) else 1)  # then a server has the GPU
    for each in preflights:
        assert run.index("kubectl", "delete job coldstream-preflight --ignore-not-found") < each


def test_what_costs_most_comes_last(walks):
    """No GPU before image and weights are there, and each step after what it needs."""
    run = walks[0].run
    steps = [
        ("az", "account show"),
        ("az", "login"),
        ("az", "provider register --namespace Microsoft.ContainerService"),
        ("az", "feature register"),
        ("az", "vm list-usage"),
        ("az", "group create"),
        ("az", "acr create"),
        ("az", "aks create"),
        ("az", "aks get-credentials"),
        ("az", "storage account create"),
        ("az", "storage container-rm create"),
        ("az", "role assignment create --role Storage Blob Data Contributor"),
        ("az", "role assignment create --role Storage Blob Data Reader"),
        ("az", "acr run"),
        ("kubectl", "apply --kustomize k8s/namespace"),
        ("kubectl", "create secret generic hugging-face"),
        ("kubectl", "apply", "(shared, upload)"),
        ("kubectl", "wait --for=condition=complete", "job/coldstream-upload"),
        ("az", "feature show"),
        ("az", "provider register --namespace Microsoft.ContainerService"),
        ("az", "nodepool add", "--enable-managed-gpu=true"),
        ("kubectl", "get nodes"),
        ("kubectl", "apply", "(shared, preflight)"),
        ("kubectl", "wait --for=condition=complete", "job/coldstream-preflight"),
        ("kubectl", "delete job coldstream-preflight"),
        ("kubectl", "apply", "(shared, server)"),
        ("kubectl", "rollout status"),
        ("kubectl", "port-forward"),
        ("curl", "/health"),
        ("curl", "/v1/chat/completions"),
        ("kubectl", "logs deployment/coldstream"),
        ("curl", "/startupz"),
        ("az", "nodepool scale", "--node-count 2"),
        ("kubectl", "scale deployment/coldstream --replicas=2"),
        ("kubectl", "scale deployment/coldstream --replicas=1"),
        ("az", "nodepool scale", "--node-count 1"),
        ("kubectl", "rollout restart"),
    ]
    at = -1
    for program, *parts in steps:
        at = run.index(program, *parts, after=at)


def test_nothing_is_asked_before_the_server_is_ready(walks):
    """Behind every forwarded port the first question is /health, until it is answered; then the port is given back."""
    for run, world in walks[:5]:
        asked = [call for call in run.calls if call.program == "curl" or call.has("kubectl", "port-forward")]
        words = ["forward" if call.program == "kubectl" else call.argv[-1] for call in asked]
        assert words.count("forward") == 2
        paths = [
            re.sub(r".*?:18000", "", " ".join(call.argv)).split()[0] if call.program == "curl" else "forward"
            for call in asked
        ]
        assert re.fullmatch(
            r"(/health )*forward (/health )+/v1/chat/completions (/health )*forward (/health )+/startupz",
            " ".join(paths),
        )
        assert [name for name in world.resources if name.startswith("forward/")] == []
        assert "data: [DONE]" in run.output


def test_two_identities_with_a_role_each_on_the_container_alone(walks):
    """The uploader writes, the server reads; each trusts one service account; both are still two after a second run."""
    for _, world in walks[:2]:
        roles = {name: role["--scope"] for name, role in world.resources.items() if name.startswith("role/")}
        assert roles.keys() == {
            "role/principalId-of-coldstream-uploader Storage Blob Data Contributor",
            "role/principalId-of-coldstream-server Storage Blob Data Reader",
        }
        assert all(scope.endswith(CONTAINER) for scope in roles.values())
        subjects = {
            name: credential["--subject"]
            for name, credential in world.resources.items()
            if name.startswith("credential/")
        }
        assert subjects == {
            "credential/coldstream-uploader/aks": "system:serviceaccount:coldstream:coldstream-uploader",
            "credential/coldstream-server/aks": "system:serviceaccount:coldstream:coldstream",
        }


def test_the_image_says_which_commit_it_is_of(walks):
    """All of it; its tag has the beginning."""
    assert walks[0].world.resources[f"image/{IMAGE}"]["revision"] == COMMIT


def test_the_cluster_enforces_policies_of_the_network(walks):
    """Or `components/networkpolicy` would do nothing in it."""
    cluster = walks[0].world.resources["cluster/coldstream"]
    assert [cluster[f"--network-{part}"] for part in ("plugin", "plugin-mode", "dataplane")] == [
        *("azure", "overlay", "cilium")
    ]


def test_the_hubs_token_is_in_no_command_line(walks):
    """Nor on any output; the Secret has it."""
    for run, world in walks[:2]:
        assert TOKEN not in run.output + run.errors
        assert not any(TOKEN in " ".join(call.argv) for call in run.calls)
        assert b64decode(world.objects["Secret/coldstream/hugging-face"]["data"]["token"]).decode() == TOKEN


def test_without_managed_gpu_nodes(fresh):
    """The device plugin is installed and tolerates the taint; no preview is asked for."""
    text = replaced(UP, ("MANAGED_GPU=yes", "MANAGED_GPU=no"))
    for run in (fresh.run(text), fresh.run(text)):
        assert run.code == 0, run.errors
        assert run.index("kubectl", "apply --namespace kube-system") < run.index("kubectl", "patch daemonset")
        assert not any(call.has("az", part) for call in run.calls for part in ("feature", "extension", "managed-gpu"))


def test_another_model_on_another_gpu(fresh):
    """The variables are all that changes."""
    text = replaced(
        UP,
        ("HF_REPO=microsoft/phi-4 MODEL=phi-4", "HF_REPO=org/name MODEL=llms/name-v2"),
        (
            "GPU_VM_SIZE=Standard_NC24ads_A100_v4 OVERLAY=aks-a100",
            "GPU_VM_SIZE=Standard_NC40ads_H100_v5 OVERLAY=aks-h100",
        ),
    )
    run = fresh.run(text)
    assert run.code == 0, run.errors
    assert "model/az://models/llms/name-v2" in fresh.world.resources


def test_each_overlay_is_named_with_its_vm_size():
    """As its nodeSelector has it."""
    sizes = {}
    for overlay in ("aks-a100", "aks-h100"):
        spec = named(f"overlays/{overlay}", "Deployment", "coldstream")["spec"]["template"]["spec"]
        sizes[overlay] = spec["nodeSelector"]["node.kubernetes.io/instance-type"]
    assert f"GPU_VM_SIZE={sizes['aks-a100']} OVERLAY=aks-a100\n" in GUIDE
    assert f"`aks-h100` goes with `{sizes['aks-h100']}`" in GUIDE


def test_the_allowlist_is_that_of_k8s():
    """One list of names in both documents."""
    (ours,) = re.findall(r"envsubst '(.*?)'", GUIDE)
    assert f"ours='{ours}'" in (K8S / "README.md").read_text()


def test_the_overlay_of_ones_own_is_one(tmp_path):
    """Kustomize builds it, and the server gets the collector's address."""
    (text,) = texts("docs/aks.md", "What the start was", "yaml")
    shutil.copytree(K8S, tmp_path / "k8s")
    mine = tmp_path / re.search(r"^# (\S+/)kustomization.yaml", text)[1]
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(text)
    kubectl = Path(sys.executable).with_name("kubectl")
    built = subprocess.run([kubectl, "kustomize", mine], capture_output=True, text=True, check=True).stdout
    assert built.count("  OTEL_EXPORTER_OTLP_ENDPOINT: http://collector.observability:4317\n") == 1
    (config_map,) = set(re.findall(r"name: (coldstream-[a-z0-9]{10})$", built, re.MULTILINE))
    assert built.count(f"name: {config_map}\n") == 4  # itself, server, both Jobs


def test_kubectl_has_every_flag_that_is_used(walks):
    """Asked of the real one."""
    kubectl = Path(sys.executable).with_name("kubectl")
    used = flags_by_command(walks[4].run.calls)
    assert len(used) >= 11
    said = subprocess.run([kubectl, "options"], capture_output=True, text=True, check=True).stdout
    common = set(re.findall(r"--[a-z-]+", said))
    for verb, flags in used.items():
        text = subprocess.run([kubectl, *verb.split(), "--help"], capture_output=True, text=True, check=True).stdout
        assert flags - common - set(re.findall(r"--[a-z-]+", text)) == set(), verb
