"""Whatever a cluster's own values look like, they reach it as strings: YAML would take `12345678` for a number.

The documents' own pipelines are run, with the real Kustomize, sed and envsubst, and read as kubectl reads what it applies.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.coldstream import ROOT
from tests.k8s.test_objects import VERSIONS
from tests.k8s.validation import validate
from tests.manifests import PLACEHOLDER, rendered
from tools.debian_packages import ensure_program

VARIANT = "overlays/aks-a100"
KUBECTL = Path(sys.executable).with_name("kubectl")
# One for each way in which a plain YAML scalar is no string, in YAML 1.1 or 1.2; an account or a tag may be one of the first.
WORDS = (
    "12345678",
    "20261123",
    "1e3",
    "0x10",
    "007",
    "1_000",
    "12:30:45",
    "-1.5",
    ".inf",
    "2026-11-23",
    "true",
    "no",
    "null",
    "~",
)
DOCUMENTS = ("docs/aks.md", "k8s/README.md")


def pipeline(document):
    """The document's `step`, which prints what it would apply."""
    text = (ROOT / document).read_text()
    names = re.findall(r"^ours='.*'$", text, re.MULTILINE)
    (step,) = re.findall(r"^step\(\) \{\n.*?^\}$", text, re.MULTILINE | re.DOTALL)
    return "\n".join([*names, "kube() { cat; }", step, "step server"])


def applied(script, value):
    """What the cluster gets where every placeholder has this value, as kubectl reads it.

    Raises:
        subprocess.CalledProcessError: kubectl cannot read it; it says why on stderr.
    """
    folders = {KUBECTL.parent, Path(ensure_program("envsubst", "gettext-base")).parent}
    values = dict.fromkeys(PLACEHOLDER.findall(rendered(VARIANT)), value)
    environ = {"PATH": ":".join([*map(str, folders), "/usr/bin", "/bin"]), "OVERLAY": "aks-a100", **values}
    bash = ["bash", "-c", f"set -euo pipefail\n{script}"]
    text = subprocess.run(bash, cwd=ROOT, env=environ, capture_output=True, text=True, check=True).stdout
    # Parses and prints, and asks no cluster: the label is there already.
    label = [
        KUBECTL,
        "label",
        "--local",
        "--overwrite",
        "--filename=-",
        "app.kubernetes.io/name=coldstream",
        "--output=json",
    ]
    done = subprocess.run(
        label, input=text, env={"KUBECONFIG": "/dev/null"}, capture_output=True, text=True, check=True
    )
    return list(decoded(done.stdout))


def decoded(text):
    """JSON documents one after another."""
    while text := text.strip():
        found, end = json.JSONDecoder().raw_decode(text)
        yield found
        text = text[end:]


def substituted(node, value):
    """A tree with the value in place of every placeholder; a string stays one."""
    match node:
        case dict():
            return {name: substituted(each, value) for name, each in node.items()}
        case list():
            return [substituted(each, value) for each in node]
        case str():
            return PLACEHOLDER.sub(lambda _: value, node)
    return node


@pytest.mark.parametrize("value", WORDS)
@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_value_that_looks_like_something_else_stays_a_string(document, value):
    """In variables, images and annotations; a cluster takes every object, and nothing but the value is another."""
    found = applied(pipeline(document), value)
    assert found == substituted(list(yaml.load_all(rendered(VARIANT), yaml.CSafeLoader)), value)
    for each in found:
        validate(each, VERSIONS[-1])


@pytest.mark.parametrize("document", DOCUMENTS)
def test_without_its_quotes_it_would_be_refused(document):
    """By kubectl itself, where an annotation is a number."""
    script = re.sub(r"sed -E '.*?' \|", "cat |", pipeline(document))
    assert script != pipeline(document)
    with pytest.raises(subprocess.CalledProcessError) as refused:
        applied(script, "12345678")
    assert "cannot unmarshal number" in refused.value.stderr
