"""Whatever the source does, a load ends in time with the right bytes or with one typed line."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from hypothesis import HealthCheck, given, settings

from streaming import errors
from streaming.options import SourceOptions
from tests.faults import schedules
from tests.faults.loading import Outcome, load_here, nothing_left_behind
from tests.faults.schedules import Plan
from tests.faults.server import FaultServer

SAS = "sv=2023-11-03&sig=c2VjcmV0LXNhcy1zaWduYXR1cmU%3D"
QUICK = SourceOptions(connect_timeout_s=0.3, request_timeout_s=0.3, max_retries=1, retry_timeout_s=1)
DEADLINE_S = 15.0
ANY = schedules.plans(schedules.slow | schedules.broken | schedules.wrong)
EXAMPLES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)


def check(outcome: Outcome, plan: Plan, checkpoint) -> None:
    """Right bytes, or a typed error of one line without a secret."""
    assert outcome.seconds < DEADLINE_S
    if outcome.error is None:
        assert not checkpoint.wrong_shards(outcome.tensors, may_be_overwritten=plan.overwrites)
        return
    kind = getattr(errors, outcome.error.kind)
    assert issubclass(kind, errors.StreamingError)
    assert outcome.error.message
    assert outcome.error.message.isprintable()
    assert "sig=" not in outcome.error.message


def run_here(plan: Plan, checkpoint) -> Outcome:
    """One load in a thread of its own, so that one that hangs is seen: the server's end then sets it free."""
    served = FaultServer(checkpoint.folder, plan.schedule())
    with nothing_left_behind(), ThreadPoolExecutor(1) as pool, served as server:
        return pool.submit(load_here, server.url, QUICK).result(DEADLINE_S)


@EXAMPLES
@given(plan=ANY)
def test_a_load_ends_right_or_says_why(warm, tiny, plan):
    """Random faults, in this process: bit-exact or a typed error, in time, and nothing is left behind."""
    check(run_here(plan, tiny), plan, tiny)
