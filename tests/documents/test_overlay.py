"""The overlay in k8s/README.md is one: Kustomize builds it, and a cluster takes what comes of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.documents.pages import texts
from tests.k8s.validation import validate
from tests.manifests import K8S, PLACEHOLDER


def built(folder):
    """The objects of an overlay, each of which a cluster takes."""
    command = [Path(sys.executable).with_name("kubectl"), "kustomize", folder]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = [each for each in yaml.load_all(PLACEHOLDER.sub("value", text), yaml.CSafeLoader) if each]
    for each in found:
        validate(each, "1.37")
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in found}


@pytest.fixture
def overlays(tmp_path):
    """A copy of the overlays, with a folder for one of one's own."""
    shutil.copytree(K8S, tmp_path / "k8s")
    (tmp_path / "k8s" / "overlays" / "mine").mkdir()
    return tmp_path / "k8s" / "overlays"


def test_an_overlay_of_ones_own_adds_its_components(overlays):
    """Beside those that are there: everything of its base, a PodMonitor and a ScaledObject."""
    (block,) = texts("k8s/README.md", "Kubernetes", "yaml")
    (overlays / "mine" / "kustomization.yaml").write_text(block)
    mine, base = built(overlays / "mine"), built(overlays / "aks-a100")
    assert base.keys() <= mine.keys()
    assert {name.partition("/")[0] for name in mine.keys() - base.keys()} == {"ConfigMap", "PodMonitor", "ScaledObject"}


def test_it_goes_on_with_where_prometheus_is(overlays):
    """Both queries go there, and the PodMonitor has the label; nothing else of it is different."""
    (begun,) = texts("k8s/README.md", "Kubernetes", "yaml")
    (goes_on,) = texts("k8s/README.md", "Prometheus", "yaml")
    written = overlays / "mine" / "kustomization.yaml"
    written.write_text(begun)
    before = built(written.parent)
    written.write_text(begun + goes_on)
    after = built(written.parent)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"PodMonitor/coldstream", "ScaledObject/coldstream"}
    assert after["PodMonitor/coldstream"]["metadata"]["labels"]["release"] == "prometheus"
    triggers = after["ScaledObject/coldstream"]["spec"]["triggers"]
    addresses = {trigger["metadata"]["serverAddress"] for trigger in triggers}
    assert addresses == {"http://prometheus-operated.observability:9090"}
