"""Whatever the source does, a load ends in time with the right bytes or with one typed line."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import tempfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, Phase, example, given, note, settings
from hypothesis import strategies as st

from streaming.options import AzureOptions, CacheOptions, SourceOptions
from tests.faults import schedules
from tests.faults.faults import Fault
from tests.faults.loading import FINE, PIPELINE, Outcome, load_here, load_in_process, nothing_left_behind
from tests.faults.schedules import CASES, CLEARING, Case, Plan, Rule
from tests.faults.server import FaultServer
from tests.faults.tally import DEADLINE_S, Tally

PATIENT = SourceOptions(connect_timeout_s=0.5, request_timeout_s=0.5, max_retries=20, retry_timeout_s=20)
SIGNATURE = "c2VjcmV0LXNhcy1zaWduYXR1cmU="
MOUNT = "account/models/tiny"
ANY = schedules.plans(schedules.slow, schedules.broken, schedules.wrong, schedules.flips)
# Most of a load's time is a wait for a timeout.
AT_ONCE = 20
EXAMPLES = {
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    "phases": [Phase.explicit, Phase.reuse, Phase.generate],  # to shrink a case of seconds takes longer than a test may
    "deadline": None,
}


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    """Between two attempts of a load in this process: hundreds of loads are to take a minute."""
    monkeypatch.setattr("streaming.retry_policy.LONGEST_WAIT_S", 0.1)
    monkeypatch.setattr("streaming.retry_policy.TURN_S", 0.1)


def quick(max_retries: int, azure: AzureOptions | None = None) -> SourceOptions:
    """Timeouts that a source on this machine meets many times over."""
    return SourceOptions(
        azure=azure or AzureOptions(),
        connect_timeout_s=0.4,
        request_timeout_s=0.4,
        max_retries=max_retries,
        retry_timeout_s=1,
    )


def play(case: Case, server: FaultServer, checkpoint, tally: Tally) -> None:
    """Load from a server that plays the plan; with a cache once more when all is well, from what the first has left."""
    with tempfile.TemporaryDirectory() as folder:
        cache = CacheOptions(folder=folder, reserve_ratio=0.0) if case.has_cache else None
        tally.check(load_here(server.url, quick(case.max_retries), PIPELINE, cache), case.plan, checkpoint)
        if cache is not None:
            server.heal()
            tally.check_healed(load_here(server.url, PATIENT, PIPELINE, cache), case.plan, checkpoint)


def run_process(plan: Plan, checkpoint) -> Outcome:
    """One loader process, from a blob service and with a SAS token; its end closes the socket it shares with us."""
    with nothing_left_behind(), checkpoint.serve(plan, mount=MOUNT, sas=SIGNATURE) as server:
        azure = AzureOptions(
            endpoint=server.account_url, sas_token=f"sv=2023-11-03&sig={SIGNATURE.replace('=', '%3D')}"
        )
        return load_in_process("az://models/tiny", quick(1, azure))


def pending_tasks() -> list[asyncio.Task]:
    """Tasks that nobody waits for any more."""
    gc.collect()
    # By their types: to ask a foreign proxy what it is may make it warn.
    return [each for each in gc.get_objects() if asyncio.Task in type(each).__mro__ and not each.done()]


@pytest.fixture
def no_task_left():
    """Whatever the test ran has ended its tasks."""
    before = {id(task) for task in pending_tasks()}
    yield
    assert not [task for task in pending_tasks() if id(task) not in before]


def play_many(tiny, plain, cases: int) -> None:
    """So many random cases; some land and some do not, or the faults would be too mild or too harsh to show anything."""
    tally = Tally()

    @settings(max_examples=cases // AT_ONCE, **EXAMPLES)
    @given(together=st.lists(CASES, min_size=AT_ONCE, max_size=AT_ONCE))
    def each_ends_well(together):
        # In this order: a load that hangs is seen, and the server's end sets it free.
        with nothing_left_behind(), ThreadPoolExecutor(AT_ONCE) as pool, contextlib.ExitStack() as servers:
            playing = []
            for case in together:
                checkpoint = tiny if case.has_manifest else plain
                server = servers.enter_context(checkpoint.serve(case.plan))
                playing.append(pool.submit(play, case, server, checkpoint, tally))
            for case, played in zip(together, playing, strict=True):
                note(f"{case}")
                played.result(2 * DEADLINE_S)

    each_ends_well()
    print(tally)
    assert tally.landed > cases / 10
    assert sum(tally.errors.values()) > cases / 10


def test_a_load_ends_right_or_says_why(warm, no_task_left, tiny, plain):
    """Random faults, in this process: bit-exact or a typed error, in time, and nothing is left behind."""
    play_many(tiny, plain, 60)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_thousand_loads_end_right_or_say_why(warm, no_task_left, tiny, plain):
    """The same, many times as often."""
    play_many(tiny, plain, 1000)


@settings(max_examples=5, **EXAMPLES)
@given(plan=ANY)
@example(plan=Plan())
def test_a_loader_process_ends_right_or_says_why(tiny, plan):
    """The same of a loader process that reads from a blob service with a SAS token, which no error shows."""
    Tally(secret=SIGNATURE).check(run_process(plan, tiny), plan, tiny)


@pytest.mark.parametrize("kind", sorted(CLEARING))
def test_what_clears_up_costs_no_load(warm, tiny, kind):
    """Every third range fails once, and the weights land bit-exact all the same."""
    plan = Plan((Rule(CLEARING[kind], share=0.3, attempts=1, weights_only=True),))
    with nothing_left_behind(), tiny.serve(plan) as server:
        outcome = load_here(server.url, PATIENT, FINE)
    hit = [each for each in server.requests if each.fault != Fault()]
    assert len(hit) > 5, "hardly a range was hit"
    assert all(each.start > 0 and each.name.endswith(".safetensors") for each in hit)
    assert outcome.error is None, outcome.error
    tiny.check(outcome, plan)


def test_the_harness_sees_a_flipped_bit(warm, plain):
    """Without a manifest it lands: the oracle is to tell."""
    plan = Plan((Rule(schedules.FlipBit(77), weights_only=True),))
    with plain.serve(plan) as server:
        outcome = load_here(server.url, quick(1), FINE)
    assert outcome.error is None
    with pytest.raises(AssertionError, match="is corrupt"):
        plain.check(outcome, plan)
