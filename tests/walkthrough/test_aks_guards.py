"""What docs/aks.md does lest a second run, a slow cloud or a lost variable spoil anything is needed, each of it."""

from __future__ import annotations

import re

import pytest

from streaming.options import HOST_STAGING
from tests.walkthrough.blocks import script
from tests.walkthrough.guide import ALL, BEFORE, GUIDE, TOKEN, UP, proof, quick, replaced
from tests.walkthrough.machine import Run


def assert_fails(run: Run, *parts: str):
    """It has failed, and said so."""
    assert run.code not in (0, 127), run.output
    assert [part for part in parts if part not in run.errors] == [], run.errors


@pytest.mark.parametrize(
    ("stuck", "word", "section"),
    [
        ("feature", "registered", "GPU nodes"),
        ("gpu", "advertised", "GPU nodes"),
        ("job", "ended", "Upload"),
        ("health", "curl", "What the start was"),
    ],
)
def test_what_never_comes_to_pass_is_given_up(again, stuck, word, section):
    """Every loop that waits ends, with a line that says for what, and leaves no port forwarded."""
    again.world.stuck = stuck
    run = again.run(quick(script(GUIDE, (*BEFORE, section))))
    assert_fails(run, f"gave up: {word}")
    assert sum(call.program == "sleep" for call in run.calls) >= 5
    assert [name for name in again.world.resources if name.startswith("forward/")] == []


def test_every_wait_has_a_bound():
    """Loops are all of one function, and what kubectl waits for has a timeout."""
    lines = [line for line in ALL.splitlines() if not line.startswith("#")]
    assert len(re.findall(r"\b(until|while)\b", "\n".join(lines))) == 1
    for line in lines:
        if re.search("kube (rollout status|wait)", line):
            assert "--timeout=" in line


NEW_COMMIT = ("git rev-parse --short=12 HEAD", "echo another")


@pytest.mark.parametrize(
    ("section", "changes", "reason"),
    [
        ("Upload", [NEW_COMMIT, ("  kube delete job coldstream-upload --ignore-not-found\n", "")], "field is immutable"),
        ("Upload", [(" --dry-run=client --output yaml |\n      kube apply --filename -", "")], "AlreadyExists"),
        ("GPU nodes", [('[ "$(pool count)" != "$1" ]', "true")], "same as the current"),
        ("GPU nodes", [('[ -n "$(pool name)" ] ||', "")], "already exists"),
        ("Cluster", [("    Failed) #", "    Succeeded) #"), ("    '')\n", "    *)\n")], "Please use command 'az aks update'"),
        ("Cluster", [(" --overwrite-existing", "")], "is in the kubeconfig file already"),
        ("Preflight", [('[ -z "$server" ]', "true")], "gave up: ended"),
    ],
)  # fmt: skip
def test_without_what_makes_it_safe_the_second_time_fails(again, section, changes, reason):
    """Each guard is needed: the stand-ins say no as the real programs do."""
    text = replaced(script(GUIDE, (*BEFORE, section)), *changes)
    assert_fails(again.run(quick(text), HF_TOKEN=TOKEN), reason)


@pytest.mark.parametrize(
    ("sections", "changes", "reason"),
    [
        (["Subscription", "Cluster", "GPU nodes"], [("    az feature register --namespace Microsoft.ContainerService", "    true")], "gave up: registered"),
        (["Subscription", "Cluster", "GPU nodes"], [("    retry 720 registered\n", "")], "FeatureNotRegistered"),
        (["Subscription", "Cluster", "GPU nodes"], [("    az provider register --namespace Microsoft.ContainerService --wait\n  fi", "  fi")], "FeatureNotRegistered"),
        (["Cluster", "Upload"], [("  kube apply --kustomize k8s/namespace\n", "")], 'namespaces "coldstream" not found'),
        ([], [(' --set image="$IMAGE"', ' --set image="${IMAGE%:*}:latest"')], "timed out"),
        ([], [("coldstream-uploader 'Storage Blob Data Contributor'", "coldstream-uploader 'Storage Blob Data Reader'")], "timed out"),
        ([], [("coldstream-server 'Storage Blob Data Reader'", "coldstream-server 'Reader'")], "timed out"),
        ([], [("GPU_VM_SIZE=Standard_NC24ads_A100_v4", "GPU_VM_SIZE=Standard_NC40ads_H100_v5")], "timed out"),
        ([], [("sku=gpu:NoSchedule", "dedicated=us:NoSchedule")], "timed out"),
        ([], [('retry 60 curl --silent --fail --output /dev/null "http://127.0.0.1:$LOCAL_PORT/health" &&', "")], "curl: ("),
    ],
)  # fmt: skip
def test_without_a_step_the_first_time_fails(fresh, sections, changes, reason):
    """Each step is needed, and the right image, role, size and taint."""
    text = replaced(script(GUIDE, ["Variables", *sections]) if sections else UP, *changes)
    assert_fails(fresh.run(quick(text), HF_TOKEN=TOKEN), reason)


def test_a_server_that_did_not_stream_is_found(fresh):
    """The line of a host-staging server is no proof."""
    fresh.world.log = proof(HOST_STAGING)
    run = fresh.run(UP)
    assert run.code == 1
    assert run.calls[-1].has("kubectl", "logs deployment/coldstream")


def test_a_variable_that_was_lost_is_told(again):
    """In a new session, for example: nothing is applied with a hole in it."""
    words = script(GUIDE, ("Variables",))
    before = len(again.world.applied)
    assert_fails(again.run(f"{words}\nstep server"), "SERVER_CLIENT_ID")
    assert len(again.world.applied) == before
