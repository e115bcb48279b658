"""The commands of k8s/README.md do what it says, twice, in a cluster whose cloud is ready; and a Job that fails ends them."""

from __future__ import annotations

import copy
import re

import pytest

from tests.manifests import K8S, PLACEHOLDER
from tests.walkthrough.azure import SUBSCRIPTION
from tests.walkthrough.blocks import script
from tests.walkthrough.guide import BEFORE, GUIDE, flags_by_command, proof, replaced
from tests.walkthrough.machine import machine
from tests.walkthrough.test_aks import IMAGE
from tests.walkthrough.workload import SERVER, settings
from tests.walkthrough.world import World

APPLY = script((K8S / "README.md").read_text(), ("Apply",))
ACCOUNT = f"coldstream{SUBSCRIPTION[:8]}"
VARIABLES = {
    "IMAGE": IMAGE,
    "STORAGE_ACCOUNT": ACCOUNT,
    "CONTAINER": "models",
    "MODEL": "phi-4",
    "HF_REPO": "microsoft/phi-4",
    "SERVER_CLIENT_ID": "clientId-of-coldstream-server",
    "UPLOADER_CLIENT_ID": "clientId-of-coldstream-uploader",
}
UPLOADER = "role/principalId-of-coldstream-uploader Storage Blob Data Contributor"
READER = "role/principalId-of-coldstream-server Storage Blob Data Reader"


@pytest.fixture(scope="module")
def cloud(tmp_path_factory):
    """Account, image, identities and a GPU node as docs/aks.md makes them, and nothing in the cluster."""
    with machine(tmp_path_factory.mktemp("cloud") / "machine", World(proof())) as made:
        run = made.run(script(GUIDE, (*BEFORE, "Storage", "GPU nodes")))
        assert run.code == 0, run.errors
        made.world.current_context = "coldstream"
        return made.world


@pytest.fixture
def ready(cloud, tmp_path):
    """A machine whose kubectl means that cluster."""
    with machine(tmp_path / "machine", copy.deepcopy(cloud)) as made:
        yield made


def steps(run):
    """Which steps were applied, in order."""
    return [
        re.search(r"\(shared, (\w+)\)", " ".join(call.argv))[1] for call in run.calls if call.has("kubectl", "apply")
    ]


def waits(run):
    """How often it waited."""
    return sum(call.program == "sleep" for call in run.calls)


def test_every_step_is_applied_and_the_second_time_changes_nothing(ready):
    """Upload, preflight and server, each behind what it needs; a second preflight would wait for the server's GPU."""
    first = ready.run(APPLY, **VARIABLES)
    assert first.code == 0, first.errors
    assert steps(first) == ["upload", "preflight", "server"]
    before = copy.deepcopy(ready.world.objects)
    second = ready.run(APPLY, **VARIABLES)
    assert second.code == 0, second.errors
    assert steps(second) == ["upload", "server"]
    assert ready.world.objects == before
    for run in (first, second):
        done = run.index("kubectl", "wait --for=condition=complete", "job/coldstream-upload")
        assert (
            run.index("kubectl", "apply", "(shared, upload)")
            < run.index("kubectl", "logs job/coldstream-upload")
            < done
        )
        assert run.index("kubectl", "apply", "(shared, server)", after=done) < run.index("kubectl", "rollout status")
    assert PLACEHOLDER.findall("\n".join(ready.world.applied)) == []


def test_a_preflight_that_succeeded_is_gone_before_the_server_comes(ready):
    """With its pod's volumes, for two of which a node's disk may be too small; an upload stays, with what it said."""
    run = ready.run(APPLY, **VARIABLES)
    assert run.code == 0, run.errors
    done = run.index("kubectl", "wait --for=condition=complete", "job/coldstream-preflight")
    deleted = run.index("kubectl", "delete job coldstream-preflight", after=done)
    assert deleted < run.index("kubectl", "apply", "(shared, server)")
    jobs = {name for name in ready.world.objects if name.startswith("Job/")}
    assert jobs == {"Job/coldstream/coldstream-upload"}


def test_another_image_replaces_the_job(ready):
    """Which cannot be changed: without its deletion the second time would fail."""
    assert ready.run(APPLY, **VARIABLES).code == 0
    image = f"{IMAGE}-newer"
    ready.world.resources[f"image/{image}"] = ready.world.resources[f"image/{IMAGE}"]
    newer = {**VARIABLES, "IMAGE": image}
    without = replaced(APPLY, ('kube delete job "coldstream-$1" --ignore-not-found && ', ""))
    run = ready.run(without, **newer)
    assert run.code != 0
    assert "field is immutable" in run.errors
    assert ready.run(APPLY, **newer).code == 0


def model(world, deployment):
    """What a pod of the Deployment would load if it began now."""
    return settings(world, deployment["spec"]["template"])["COLDSTREAM_MODEL"]


def test_another_model_reaches_the_server_with_its_own_step(ready):
    """Not with an upload, which may fail: until then, and after an undo, every pod that begins loads the former one."""
    assert ready.run(APPLY, **VARIABLES).code == 0
    former = copy.deepcopy(ready.world.objects[SERVER])
    newer = {**VARIABLES, "MODEL": "phi-5", "HF_REPO": "microsoft/phi-5"}
    role = ready.world.resources.pop(UPLOADER)
    run = ready.run(APPLY, **newer)
    assert (run.code != 0, steps(run)) == (True, ["upload"])
    assert ready.world.objects[SERVER] == former
    assert model(ready.world, former) == "az://models/phi-4"

    ready.world.resources[UPLOADER] = role
    run = ready.run(APPLY, **newer)
    assert run.code == 0, run.errors
    assert ready.world.objects[SERVER]["spec"]["template"] != former["spec"]["template"]
    assert model(ready.world, ready.world.objects[SERVER]) == "az://models/phi-5"
    assert model(ready.world, former) == "az://models/phi-4"


def test_a_setting_that_changes_in_place_would_be_noticed(ready):
    """As one did that was filled in behind the ConfigMap's hash."""
    text = replaced(APPLY, ('envsubst "$ours" |', 'envsubst "$ours" | sed "s/: workload-identity/: $MODEL/" |'))
    assert ready.run(text, **VARIABLES).code == 0
    run = ready.run(text, **{**VARIABLES, "MODEL": "phi-5"})
    assert run.code != 0
    assert "would change under what runs" in run.errors


@pytest.mark.parametrize(("lost", "applied"), [(UPLOADER, ["upload"]), (READER, ["upload", "preflight"])])
def test_a_job_that_fails_ends_it_at_once(ready, lost, applied):
    """Its log is shown, nobody waits until a time is over, and no later step is applied."""
    del ready.world.resources[lost]
    run = ready.run(APPLY, **VARIABLES)
    assert run.code != 0
    assert steps(run) == applied
    assert run.index("kubectl", f"logs job/coldstream-{applied[-1]}") < len(run.calls) - 1
    assert run.calls[-1].has("kubectl", "wait --for=condition=complete --timeout=5s")
    assert waits(run) < 10
    assert f"Job/coldstream/coldstream-{applied[-1]}" in ready.world.objects


def test_without_its_guard_preflight_would_wait_for_the_servers_gpu(ready):
    """The second time, until it is given up."""
    without = replaced(APPLY, ("{ served || job preflight; }", "job preflight"), ("{1..1440}", "{1..6}"))
    assert ready.run(without, **VARIABLES).code == 0
    run = ready.run(without, **VARIABLES)
    assert run.code != 0
    assert steps(run) == ["upload", "preflight"]


def test_a_job_that_never_ends_is_given_up(ready):
    """After so many looks, with what it has said by then."""
    ready.world.stuck = "job"
    run = ready.run(replaced(APPLY, ("{1..1440}", "{1..6}")), **VARIABLES)
    assert run.code != 0
    assert (steps(run), waits(run)) == (["upload"], 6)


@pytest.mark.parametrize("name", VARIABLES)
def test_a_variable_that_was_lost_is_told(ready, name):
    """Nothing is applied with a hole in it."""
    run = ready.run(APPLY, **{other: value for other, value in VARIABLES.items() if other != name})
    assert run.code != 0
    assert name in run.errors
    assert ready.world.applied == []


def test_its_flags_are_those_of_the_walkthrough(ready, walks):
    """Of which the real kubectl was asked."""
    known = flags_by_command(walks[4].run.calls)
    for command, flags in flags_by_command(ready.run(APPLY, **VARIABLES).calls).items():
        assert flags <= known[command], command
