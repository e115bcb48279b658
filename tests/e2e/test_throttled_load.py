"""A load over a slow source, timed from outside: alive at once, honest about the time that is left, ready when warm."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

import httpx
import pytest

from streaming.clock import boottime_s, exec_time_s
from tests.coldstream import serving, wait_for
from tools.blob_server import BlobServer

# 59 MB in 7 s, in 57 chunks: long after torch is imported, and with a first pass that takes no time, so that what is
# timed is the source.
BYTES_PER_S = 8.5e6
FLAGS = ("--concurrency", "2", "--chunk-mib", "1")
LIVE_WITHIN_S = 1.0
MOST_STARTS = 3
# An estimate may be off by a fifth of what is left, and by half a second in any case.
RELATIVE_ERROR = 0.2
FLOOR_S = 0.5


@dataclass(frozen=True)
class Seen:
    """One answer of /health and when it came (CLOCK_BOOTTIME)."""

    at_s: float
    status: int
    health: dict
    retry_after: str | None

    @property
    def loads(self):
        """Whether it says that weights are on their way."""
        return self.health["state"] == "loading"


@dataclass(frozen=True)
class ThrottledLoad:
    """What was seen from exec to the first completion."""

    livez_after_s: float
    seen: list[Seen]
    first_completion: httpx.Response

    @property
    def ready_s(self):
        """When /health first said 200."""
        return self.seen[-1].at_s


def livez_after_s(server):
    """Seconds from the kernel's start of the process to the first 200."""

    def livez():
        with contextlib.suppress(httpx.TransportError):
            return server.client.get("/livez").status_code == 200
        return False

    wait_for(livez)
    return boottime_s() - exec_time_s(server.pid)


def watched_load(model, log_path):
    """One load, asked about 50 times a second."""
    seen = []
    with (
        BlobServer(model.folder, bytes_per_s=BYTES_PER_S) as source,
        serving(source.url, *FLAGS, log_path=log_path) as server,
    ):
        live_s = livez_after_s(server)

        def ready():
            answer = server.client.get("/health")
            seen.append(Seen(boottime_s(), answer.status_code, answer.json(), answer.headers.get("retry-after")))
            return answer.status_code == 200

        wait_for(ready, 120)
        body = {"model": "m", "prompt": model.prompt_token_ids, "max_tokens": 1, "temperature": 0}
        return ThrottledLoad(live_s, seen, server.client.post("/v1/completions", json=body))


@pytest.fixture(scope="module")
def load(small_model, tmp_path_factory):
    """What every test here looks at."""
    return watched_load(small_model, tmp_path_factory.mktemp("throttled") / "log")


def late_estimates(load):
    """Of the second half of the load: seconds that /health said were left, and seconds that were."""
    began_s = next(each.at_s for each in load.seen if each.loads)
    half_s = (began_s + load.ready_s) / 2
    late = [each for each in load.seen[:-1] if each.at_s > half_s]
    assert all(each.health["eta_s"] is not None for each in late if each.loads)
    return [(each.health["eta_s"], load.ready_s - each.at_s) for each in late if each.health["eta_s"] is not None]


def is_right(said_s, was_s):
    """Whether an estimate is as good as promised."""
    return abs(said_s - was_s) <= RELATIVE_ERROR * was_s + FLOOR_S


def test_livez_answers_within_a_second_of_exec(load, tiny_model, tmp_path):
    """The best of up to three starts: another program's load is not ours."""
    best_s = load.livez_after_s
    for number in range(MOST_STARTS - 1):
        if best_s < LIVE_WITHIN_S:
            break
        with serving(str(tiny_model.folder), log_path=tmp_path / f"log-{number}", grace_s=0) as server:
            best_s = min(best_s, livez_after_s(server))
    print(f"/livez after {best_s:.2f} s")
    assert best_s < LIVE_WITHIN_S


def test_bytes_only_rise_to_their_total(load):
    """No answer takes back what an earlier one said, and the last has all."""
    landed = [each.health["bytes_landed"] for each in load.seen]
    assert landed == sorted(landed)
    assert len(set(landed)) > 20
    totals = {each.health["bytes_total"] for each in load.seen if each.loads}
    assert totals == {landed[-1]}


def test_ready_is_said_once_and_is_true(load, small_model):
    """503 in every state but ready; a completion that is asked for the moment after 200 is answered right."""
    assert [each.status for each in load.seen] == [503] * (len(load.seen) - 1) + [200]
    assert {each.health["state"] for each in load.seen[:-1]} <= {"starting", "loading", "warming"}
    assert load.seen[-1].health["state"] == "ready"
    assert load.seen[-1].health["bytes_landed"] == load.seen[-1].health["bytes_total"]
    assert load.first_completion.status_code == 200
    assert load.first_completion.json()["choices"][0]["text"] == small_model.continuation()


def test_the_time_left_is_right_in_the_second_half_of_the_load(load, small_model, tmp_path):
    """Every estimate of a load, the best of up to three: a rate that another program has halved predicts nothing."""
    for number in range(MOST_STARTS):
        estimates = late_estimates(load)
        said_s, was_s = max(estimates, key=lambda each: abs(each[0] - each[1]))
        print(f"{len(estimates)} estimates, the worst said {said_s:.2f} s, and it was {was_s:.2f}")
        assert len(estimates) > 20
        wrong = [each for each in estimates if not is_right(*each)]
        if not wrong or number == MOST_STARTS - 1:
            break
        load = watched_load(small_model, tmp_path / f"log-{number}")
    assert not wrong


def test_retry_after_is_the_time_left(load):
    """In whole seconds, 1 to 120, on every 503."""
    for each in load.seen[:-1]:
        assert each.retry_after is not None
        assert 1 <= int(each.retry_after) <= 120
        if each.health["eta_s"] is not None:
            assert int(each.retry_after) == min(120, max(1, math.ceil(each.health["eta_s"])))
    assert load.seen[-1].retry_after is None
