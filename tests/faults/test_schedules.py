"""Whatever the source does, a load ends in time with the right bytes or with one typed line."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, event, example, given, settings

from streaming import errors
from streaming.options import AzureOptions, SourceOptions
from tests.faults import schedules
from tests.faults.faults import Fault
from tests.faults.loading import Outcome, load_here, load_in_process, nothing_left_behind
from tests.faults.schedules import BEYOND_OBSTORE, CLEARING, Plan, Rule

QUICK = SourceOptions(connect_timeout_s=0.3, request_timeout_s=0.3, max_retries=1, retry_timeout_s=1)
PATIENT = SourceOptions(connect_timeout_s=1, request_timeout_s=1, max_retries=8, retry_timeout_s=20)
DEADLINE_S = 20.0
SIGNATURE = "c2VjcmV0LXNhcy1zaWduYXR1cmU="
MOUNT = "account/models/tiny"
ANY = schedules.plans(schedules.slow | schedules.broken | schedules.wrong)
FLIPPED = schedules.plans(schedules.slow | schedules.broken | schedules.wrong | schedules.flips)
EXAMPLES = {"suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow], "deadline": None}

# Until the loader tries again by itself it is as patient as obstore is.
TRIES_AGAIN = importlib.util.find_spec("streaming.retrying") is not None
DEMANDED = sorted(CLEARING.keys() - (set() if TRIES_AGAIN else BEYOND_OBSTORE))


def check(outcome: Outcome, plan: Plan, checkpoint) -> None:
    """Right bytes, or a typed error of one line without a secret; in time."""
    event(outcome.error.kind if outcome.error else "landed")
    assert outcome.seconds < DEADLINE_S
    if outcome.error is None:
        checkpoint.check(outcome, plan)
        return
    assert issubclass(getattr(errors, outcome.error.kind), errors.StreamingError)
    assert outcome.error.message
    assert "\n" not in outcome.error.message
    assert not any(word in outcome.error.message for word in ("sig=", SIGNATURE, SIGNATURE.rstrip("=")))


def run_here(plan: Plan, checkpoint, options: SourceOptions = QUICK) -> Outcome:
    """One load in a thread of its own, so that one that hangs is seen: the server's end then sets it free."""
    with nothing_left_behind(), ThreadPoolExecutor(1) as pool, checkpoint.serve(plan) as server:
        return pool.submit(load_here, server.url, options).result(DEADLINE_S)


def run_process(plan: Plan, checkpoint) -> Outcome:
    """One loader process, from a blob service and with a SAS token; its end closes the socket it shares with us."""
    with nothing_left_behind(), checkpoint.serve(plan, mount=MOUNT, sas=SIGNATURE) as server:
        azure = AzureOptions(
            endpoint=server.account_url, sas_token=f"sv=2023-11-03&sig={SIGNATURE.replace('=', '%3D')}"
        )
        options = SourceOptions(
            azure=azure, connect_timeout_s=0.3, request_timeout_s=0.3, max_retries=1, retry_timeout_s=1
        )
        return load_in_process("az://models/tiny", options)


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


@settings(max_examples=100, **EXAMPLES)
@given(plan=ANY)
def test_a_load_ends_right_or_says_why(warm, no_task_left, tiny, plan):
    """Random faults, in this process: bit-exact or a typed error, in time, and nothing is left behind."""
    check(run_here(plan, tiny), plan, tiny)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=1000, **EXAMPLES)
@given(plan=ANY)
def test_a_thousand_loads_end_right_or_say_why(warm, no_task_left, tiny, plan):
    """The same, ten times as often."""
    check(run_here(plan, tiny), plan, tiny)


@settings(max_examples=8, **EXAMPLES)
@given(plan=ANY)
@example(plan=Plan())
def test_a_loader_process_ends_right_or_says_why(tiny, plan):
    """The same of a loader process that reads from a blob service with a SAS token, which no error shows."""
    check(run_process(plan, tiny), plan, tiny)


@settings(max_examples=20, **EXAMPLES)
@given(plan=FLIPPED)
def test_no_flipped_bit_lands(warm, tiny, plan):
    """What a manifest vouches for is never corrupt; without one nobody could tell, and no bit is flipped."""
    if not tiny.is_verified:
        plan = Plan(tuple(rule for rule in plan.rules if not isinstance(rule.fault, schedules.FlipBit)))
    check(run_here(plan, tiny), plan, tiny)


@pytest.mark.parametrize("kind", DEMANDED)
def test_what_clears_up_costs_no_load(warm, tiny, kind):
    """Every third range fails once, and the weights land bit-exact all the same."""
    plan = Plan((Rule(CLEARING[kind], share=0.3, attempts=1, weights_only=True),))
    with nothing_left_behind(), tiny.serve(plan) as server:
        outcome = load_here(server.url, PATIENT)
    assert [each.fault for each in server.requests if each.fault != Fault()], "no range was hit"
    assert outcome.error is None, outcome.error
    tiny.check(outcome, plan)


def test_a_flipped_bit_is_seen(warm, tiny):
    """By the manifest where there is one, and the range is read again; else by this harness, which is to see corruption."""
    plan = Plan((Rule(schedules.FlipBit(77), weights_only=True),))
    outcome = run_here(plan, tiny)
    if tiny.is_verified:
        assert outcome.error is None
        tiny.check(outcome, plan)
    else:
        with pytest.raises(AssertionError, match="is corrupt"):
            tiny.check(outcome, plan)
