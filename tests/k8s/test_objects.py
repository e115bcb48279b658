"""Everything below k8s/ is put together by Kustomize, and a cluster takes what comes of it."""

from __future__ import annotations

import copy

import jsonschema
import pytest

from tests.k8s.pod_security import offences
from tests.k8s.validation import validate
from tests.manifests import K8S, OVERLAYS, VARIANTS, named, objects, pods

# preStop's sleep is on by default since 1.30, and stable since 1.34.
VERSIONS = ("1.30", "1.33", "1.37")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_cluster_takes_every_object(variant, version):
    """No field is unknown, missing or of the wrong kind."""
    found = objects(variant)
    assert len(found) >= 5
    for each in found:
        validate(each, version)


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("Deployment", ("spec", "template", "spec")),
        ("PodDisruptionBudget", ("spec",)),
        ("ScaledObject", ("spec", "advanced", "horizontalPodAutoscalerConfig", "behavior", "scaleDown")),
        ("PodMonitor", ("spec", "podMetricsEndpoints", 0)),
    ],
)
def test_a_misspelt_field_is_found(kind, path):
    """What validates here is strict enough to be worth asking."""
    obj = copy.deepcopy(named("base+keda+monitoring", kind, "coldstream"))
    part = obj
    for step in path:
        part = part[step]
    part["stabilisationWindow"] = 1
    with pytest.raises(jsonschema.ValidationError, match="stabilisationWindow"):
        validate(obj, VERSIONS[-1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_an_object_refers_to_is_there(variant):
    """ConfigMaps, Secrets that are not optional, service accounts and what is scaled; no two objects have one name."""
    names = [(each["kind"], each["metadata"]["name"]) for each in objects(variant)]
    assert len(set(names)) == len(names)
    asked = set()
    for _, template in pods(variant):
        spec = template["spec"]
        asked |= {("ServiceAccount", spec["serviceAccountName"])} if "serviceAccountName" in spec else set()
        for container in spec["containers"]:
            for source in container.get("envFrom", []):
                asked |= {("ConfigMap", source["configMapRef"]["name"])} if "configMapRef" in source else set()
                asked |= {("Secret", source["secretRef"]["name"])} if "secretRef" in source else set()
    asked |= {
        ("Deployment", each["spec"]["scaleTargetRef"]["name"])
        for each in objects(variant)
        if each["kind"] == "ScaledObject"
    }
    assert asked
    assert asked <= set(names)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_pod_keeps_to_the_restricted_profile(variant):
    """Jobs and the emulator too; and no pod gets a token of the API server's."""
    found = dict(pods(variant))
    assert "Deployment/coldstream" in found
    assert {name: offences(template["spec"]) for name, template in found.items()} == {name: [] for name in found}
    assert all(template["spec"]["automountServiceAccountToken"] is False for template in found.values())


@pytest.mark.parametrize(
    ("path", "value", "offence"),
    [
        ("hostNetwork", True, "hostNetwork"),
        ("volumes", [{"name": "v", "hostPath": {"path": "/mnt"}}], "volume hostPath"),
        ("securityContext", {"runAsNonRoot": True}, "coldstream: seccompProfile"),
        ("securityContext", {"seccompProfile": {"type": "RuntimeDefault"}}, "coldstream: runAsNonRoot"),
    ],
)
def test_a_pod_that_asks_for_more_is_found(path, value, offence):
    """What judges by the profile does say no."""
    spec = {**named("base", "Deployment", "coldstream")["spec"]["template"]["spec"], path: value}
    assert offences(spec) == [offence]


@pytest.mark.parametrize("loosened", ["allowPrivilegeEscalation", "readOnlyRootFilesystem", "capabilities"])
def test_a_container_that_asks_for_more_is_found(loosened):
    """Leaving a field out is asking for more."""
    spec = copy.deepcopy(named("base", "Deployment", "coldstream")["spec"]["template"]["spec"])
    del spec["containers"][0]["securityContext"][loosened]
    assert [line.split(": ")[1].split(".")[0] for line in offences(spec)] == [loosened]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_has_a_namespace_that_admits_only_the_restricted_profile(overlay):
    """And everything else lies in it."""
    namespace, *rest = sorted(objects(f"overlays/{overlay}"), key=lambda each: each["kind"] != "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert {each["metadata"]["namespace"] for each in rest} == {namespace["metadata"]["name"]}


def test_every_component_is_named_in_the_readme():
    """And every overlay."""
    readme = (K8S / "README.md").read_text()
    folders = [path for kind in ("components", "overlays") for path in (K8S / kind).iterdir()]
    assert len(folders) > 9
    assert [path.name for path in folders if f"`{path.name}`" not in readme] == []
