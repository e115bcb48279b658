"""What docs/aks.md does where something fails: its block ends there, the session goes on, and the block run again mends it."""

from __future__ import annotations

import copy
from typing import NamedTuple

import pytest

from tests.walkthrough.blocks import Block, blocks, script
from tests.walkthrough.guide import BEFORE, GUIDE, TOKEN, proof, quick
from tests.walkthrough.machine import machine
from tests.walkthrough.world import Call, World, split

BASH = [block for block in blocks(GUIDE) if block.language == "bash"]
# What changes something or waits. The rest asks, and some of it has to fail: what is not there yet is made.
_DOES = {
    "az": {"add", "create", "delete", "get-credentials", "register", "run", "scale", "update"},
    "kubectl": {"apply", "delete", "logs", "patch", "rollout", "scale", "wait"},
}
# What a session has from the blocks before, as far as there is something to ask for.
(CLIENT_IDS,) = (block.text for block in BASH if block.text.startswith("UPLOADER_CLIENT_ID="))
SESSION = "".join(block.text for block in BASH if block.section == "Variables") + CLIENT_IDS
UNTIL_POOL = script(GUIDE, (*BEFORE, "Storage", "GPU nodes"))
POOL = script(GUIDE, (*BEFORE, "GPU nodes"))


class Stage(NamedTuple):
    """A block, and the world that it is pasted into."""

    block: Block
    world: World


def does(call: Call) -> bool:
    """Whether a block has to end where it fails."""
    words, _ = split(call.argv)
    return bool(_DOES.get(call.program, set()) & {*words})


def waits(run) -> int:
    """How often it waited."""
    return sum(call.program == "sleep" for call in run.calls)


@pytest.fixture(scope="session")
def stages(tmp_path_factory):
    """Every block, with the world that those before it made."""
    made = []
    with machine(tmp_path_factory.mktemp("stages") / "machine", World(proof())) as walker:
        for block in BASH:
            made.append(Stage(block, copy.deepcopy(walker.world)))
            run = walker.run(f"{SESSION}{block.text}", HF_TOKEN=TOKEN)
            assert run.code == 0, run.errors
    return made


@pytest.fixture
def walker(tmp_path):
    """A machine whose world is given to it."""
    with machine(tmp_path / "machine", World(proof())) as made:
        yield made


@pytest.mark.parametrize("number", range(len(BASH)), ids=[f"{n}-{block.section}" for n, block in enumerate(BASH)])
def test_a_failure_in_the_middle_ends_the_block_and_not_the_session(stages, walker, number):
    """Whichever of its commands fails, nothing of the block is run behind it, and the session's next line is."""
    block, world = stages[number]
    walker.world = copy.deepcopy(world)
    before = len(walker.run(SESSION).calls)
    clean = walker.run(f"{SESSION}{block.text}", HF_TOKEN=TOKEN)
    failing = [n for n, call in enumerate(clean.calls) if n >= before and does(call)]
    for walker.failing in failing:
        walker.world = copy.deepcopy(world)
        run = walker.run(f'{SESSION}{block.text}echo "ended: $?"', HF_TOKEN=TOKEN)
        assert "ended: 1\n" in run.output
        assert [call.argv for call in run.calls[walker.failing + 1 :]] == [], block.section


def test_every_section_has_what_can_fail(stages, walker):
    """But the variables: the test above is about all of the rest."""
    found = set()
    for block, world in stages:
        walker.world = copy.deepcopy(world)
        before = len(walker.run(SESSION).calls)
        if any(does(call) for call in walker.run(f"{SESSION}{block.text}", HF_TOKEN=TOKEN).calls[before:]):
            found.add(block.section)
    assert found == {block.section for block in BASH} - {"Variables"}


def test_a_login_takes_no_other_line_for_its_answer():
    """It is a block of one line, before any other of Azure's."""
    with_az = [block for block in BASH if "az " in block.text]
    assert [block for block in with_az if "az login" in block.text] == with_az[:1]
    assert with_az[0].text.count("\n") == 1


def test_a_pool_that_was_not_to_be_had_is_made_anew(fresh):
    """The first run ends where Azure has no GPU, without a wait; the second deletes what is left, and adds it again."""
    fresh.world.scarce = {"pool": 1}
    first = fresh.run(UNTIL_POOL)
    assert first.code != 0
    assert "AllocationFailed" in first.errors
    assert first.calls[-1].has("az", "nodepool add")
    assert fresh.world.resources["pool/gpu"]["state"] == "Failed"
    second = fresh.run(POOL)
    assert second.code == 0, second.errors
    deleted = second.index("az", "nodepool delete")
    assert second.index("az", "nodepool add", after=deleted) < second.index("kubectl", "get nodes", after=deleted)
    assert fresh.world.resources["pool/gpu"]["nodes"] == "1"


def test_a_second_failure_ends_at_once_too(fresh):
    """With Azure's message, and without waiting for a node that does not come."""
    fresh.world.scarce = {"pool": 2}
    assert fresh.run(UNTIL_POOL).code != 0
    run = fresh.run(POOL)
    assert run.code != 0
    assert "AllocationFailed" in run.errors
    assert run.calls[-1].has("az", "nodepool add")
    assert waits(run) == 0


def test_a_second_gpu_that_is_not_to_be_had_costs_the_first_one_nothing(again):
    """No second server is asked for; the block again says what to do; the next one, or GPU nodes, gives the number back."""
    up, down = (block.text for block in BASH if block.section == "Scale")
    again.world.scarce = {"pool": 1}
    for message in ("AllocationFailed", "the pool gpu is Failed with 2 nodes asked for"):
        run = again.run(SESSION + up)
        assert run.code != 0
        assert message in run.errors
        assert not any(call.program == "kubectl" for call in run.calls)
    failed = copy.deepcopy(again.world)
    for mending in (SESSION + down, POOL):
        again.world = copy.deepcopy(failed)
        run = again.run(mending)
        assert run.code == 0, run.errors
        assert not any(call.has("az", part) for call in run.calls for part in ("nodepool delete", "nodepool add"))
        pool = again.world.resources["pool/gpu"]
        assert (pool["--node-count"], pool["nodes"], pool["state"]) == ("1", "1", "Succeeded")


def test_a_pool_is_not_deleted_where_nobody_knows_its_nodes(again):
    """A cluster that does not answer is not one without nodes."""
    again.world.resources["pool/gpu"]["state"] = "Failed"
    del again.world.resources["context/coldstream"]
    run = again.run(SESSION + next(block.text for block in BASH if block.section == "GPU nodes"))
    assert run.code != 0
    assert run.calls[-1].has("kubectl", "get nodes --selector kubernetes.azure.com/agentpool=gpu")
    assert "pool/gpu" in again.world.resources


def test_a_failed_cluster_is_mended_and_not_made_again(fresh):
    """By an update, which ends at once where Azure still cannot; it adds what a creation that failed had not come to."""
    fresh.world.scarce = {"cluster": 2}
    text = script(GUIDE, BEFORE)
    for last in ("aks create", "aks update"):
        run = fresh.run(text)
        assert run.code != 0
        assert "AllocationFailed" in run.errors
        assert run.calls[-1].has("az", last, "--attach-acr")
    run = fresh.run(script(GUIDE, (*BEFORE, "Storage")))
    assert run.code == 0, run.errors
    assert fresh.world.resources["cluster/coldstream"]["state"] == "Succeeded"


def test_preflight_leaves_its_job_only_where_it_failed(walks, again):
    """For its log; one that passed would keep the node's disk, where it has one."""
    name = "Job/coldstream/coldstream-preflight"
    assert name not in walks[0].world.objects
    del again.world.objects["Deployment/coldstream/coldstream"]
    del again.world.resources["role/principalId-of-coldstream-server Storage Blob Data Reader"]
    run = again.run(SESSION + quick(next(block.text for block in BASH if block.section == "Preflight")))
    assert run.code != 0
    assert name in again.world.objects
