"""A pod's only container as a process of this machine: the manifest's own command line and variables.

Takes what `tests.manifests` renders and a folder in the place of the pod's volumes; gives words and an environment. Of this
machine there is what an image has set itself, and nothing else. Knows no kubelet.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tests.manifests import Json, Secrets, environment, expanded, named

_IMAGE = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")
_ENTRY_POINT = "coldstream"


class Container(NamedTuple):
    """How it is run: words and all of its environment."""

    command: list[str]
    environ: dict[str, str]


def container(
    variant: str, target: str, folder: Path, own: Mapping[str, str], secrets: Secrets | None = None
) -> Container:
    """The container of `kind/name` in a variant of `k8s/`.

    Args:
        variant: As `tests.manifests` has them.
        target: Such as "Deployment/coldstream".
        folder: Where its volumes are; they are made below it.
        own: Variables that have to differ on this machine.
        secrets: What the namespace has beside the variant's own Secrets.
    """
    template = named(variant, *target.split("/"))["spec"]["template"]
    (spec,) = template["spec"]["containers"]
    assert spec["command"] == [_ENTRY_POINT]
    variables = environment(variant, template, secrets)
    placed = {name: _placed(text, spec, folder) for name, text in variables.items()} | dict(own)
    inherited = {name: os.environ[name] for name in _IMAGE if name in os.environ}
    # As Kubernetes does: with the container's own variables, not with a shell's.
    words = [expanded(word, placed) for word in spec["args"]]
    return Container([sys.executable, "-P", "-m", "app", *words], inherited | placed)


def _placed(text: str, spec: Json, folder: Path) -> str:
    """A path on a volume is one below the folder; everything else stays."""
    for mount in spec["volumeMounts"]:
        volume = folder / mount["mountPath"].lstrip("/")
        volume.mkdir(parents=True, exist_ok=True)
        if text.startswith("/") and PurePosixPath(text).is_relative_to(mount["mountPath"]):
            return str(folder / text.lstrip("/"))
    return text
