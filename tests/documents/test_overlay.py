"""The overlay in k8s/README.md is one: Kustomize builds it, and a cluster takes what comes of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from tests.documents.pages import texts
from tests.k8s.validation import validate
from tests.manifests import K8S, PLACEHOLDER


def test_an_overlay_of_ones_own_adds_its_components(tmp_path):
    """Beside those that are there: everything of its base, a PodMonitor and a ScaledObject."""
    (block,) = texts("k8s/README.md", "Kubernetes", "yaml")
    shutil.copytree(K8S, tmp_path / "k8s")
    mine = tmp_path / "k8s" / "overlays" / "mine"
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(block)
    kinds = {}
    for folder in (mine, mine.with_name("aks-a100")):
        command = [Path(sys.executable).with_name("kubectl"), "kustomize", folder]
        built = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found = [each for each in yaml.load_all(PLACEHOLDER.sub("value", built), yaml.CSafeLoader) if each]
        for each in found:
            validate(each, "1.37")
        kinds[folder.name] = [each["kind"] for each in found]
    added = list(kinds["mine"])
    for kind in kinds["aks-a100"]:
        added.remove(kind)
    assert sorted(added) == ["ConfigMap", "PodMonitor", "ScaledObject"]
