"""The number of reads at once follows what a source bears; simulated servers and clients say how closely."""

from __future__ import annotations

import heapq
import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.adaptive_limit import AdaptiveLimit

WARM_UP_S, END_S = 30.0, 130.0


class Client:
    """Keeps as many reads under way as its limit says; one that was refused is tried again after a second or so."""

    def __init__(self, lanes: int):
        self.limit = AdaptiveLimit(lanes)
        self.running = self.served = self.refused = 0
        self.limits: list[int] = []

    def heard(self, began_in: int, now_s: float, *, served: bool) -> None:
        """An answer or a refusal; counted once the start is over."""
        self.running -= 1
        if served:
            self.limit.answered(began_in, 1, 1.0)
        else:
            self.limit.refused(began_in)
        if now_s > WARM_UP_S:
            self.served += served
            self.refused += not served
            self.limits.append(self.limit.current)


class Slots:
    """A server that refuses what is more than `capacity` reads at once."""

    def __init__(self, capacity: int):
        self._free = capacity

    def admits(self, _now_s: float) -> bool:
        """Whether another read is served."""
        if self._free == 0:
            return False
        self._free -= 1
        return True

    def done(self) -> None:
        """A read that was served has ended."""
        self._free += 1


class Rate:
    """A server that refuses what is more than `capacity` reads per second; a second's may come together."""

    def __init__(self, capacity: int):
        self._per_s, self._most, self._at_s = capacity, capacity, 0.0
        self._tokens = self._most

    def admits(self, now_s: float) -> bool:
        """Whether another read is served."""
        self._tokens = min(self._most, self._tokens + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def done(self) -> None:
        """A read that was served has ended."""


def simulate(clients, server, seed):
    """Reads of about a second each, refusals at once."""
    rng, order = random.Random(seed), itertools.count()
    events = []  # when, in which order, whose, and either None (a read begins) or the round it began in and whether it was served

    def begin(client, after_s):
        while client.running < client.limit.current:
            client.running += 1
            heapq.heappush(events, (after_s + rng.uniform(0, 0.02), next(order), client, None))

    for client in clients:
        begin(client, rng.random())
    while events[0][0] < END_S:
        now_s, _, client, answer = heapq.heappop(events)
        if answer is None:
            served = server.admits(now_s)
            takes_s = rng.uniform(0.8, 1.2) if served else 0.01
            heapq.heappush(events, (now_s + takes_s, next(order), client, (client.limit.round, served)))
            continue
        began_in, served = answer
        if served:
            server.done()
        client.heard(began_in, now_s, served=served)
        begin(client, now_s + (0 if served else rng.uniform(0.5, 1.5)))


@settings(max_examples=25)
@given(st.integers(2, 60), st.sampled_from([Slots, Rate]), st.integers(0, 1000))
def test_one_client_settles_at_the_servers_capacity(capacity, kind, seed):
    """The limit swings below it and hardly above; most of the server is used, and few reads are refused."""
    client = Client(64)
    simulate([client], kind(capacity), seed)
    assert max(client.limits) <= 1.5 * capacity + 2
    assert 0.65 * capacity <= sum(client.limits) / len(client.limits) <= 1.1 * capacity + 1
    assert client.served >= 0.6 * capacity * (END_S - WARM_UP_S)
    assert client.refused <= 0.3 * client.served


@settings(max_examples=10)
@given(st.integers(28, 150), st.integers(0, 1000))
def test_fourteen_clients_share_a_server_fairly(capacity, seed):
    """Jain's index of what they were served is above 0.9, and most of the server is used."""
    clients = [Client(16) for _ in range(14)]
    simulate(clients, Rate(capacity), seed)
    served = [client.served for client in clients]
    assert sum(served) ** 2 / (14 * sum(each**2 for each in served)) > 0.9
    assert sum(served) > 0.6 * capacity * (END_S - WARM_UP_S)


EVENTS = st.lists(
    st.tuples(st.booleans(), st.integers(0, 2), st.integers(1, 100), st.floats(0.001, 100)),
    max_size=400,
)


@given(EVENTS, st.integers(1, 64), st.integers(1, 80))
def test_the_limit_stays_between_its_bounds(events, most, least):
    """Whatever is answered, by reads of whatever round."""
    limit = AdaptiveLimit(most, least=least)
    assert limit.current == most
    for refused, rounds_ago, nbytes, seconds in events:
        if refused:
            limit.refused(limit.round - rounds_ago)
        else:
            limit.answered(limit.round - rounds_ago, nbytes, seconds)
        assert min(least, most) <= limit.current <= most
        assert limit.is_reduced == (limit.current < most)


def test_reads_refused_together_lower_the_limit_once():
    """Sixteen refusals of one row of lanes are one word of the source."""
    limit = AdaptiveLimit(16)
    for _ in range(16):
        limit.refused(0)
    assert limit.current == 11


def answer(limit, times, seconds):
    for _ in range(times):
        limit.answered(limit.round, 1, seconds if isinstance(seconds, float) else seconds(limit.current))


def test_a_queue_of_our_own_making_is_shortened():
    """Where the time of a read grows with how many there are, fewer are under way in the end, and none is refused."""
    limit = AdaptiveLimit(16)
    answer(limit, 32, 1.0)
    answer(limit, 400, lambda current: max(1.0, current / 2))
    assert 3 <= limit.current <= 7


def test_a_source_that_is_slow_for_other_reasons_keeps_its_lanes():
    """Fewer reads would be as slow: the decrease is taken back, and what is slow becomes the measure."""
    limit = AdaptiveLimit(16)
    answer(limit, 32, 1.0)
    lowest = 16
    for _ in range(40):
        answer(limit, 8, 10.0)
        lowest = min(lowest, limit.current)
    assert lowest == 12
    assert limit.current == 16


def test_small_reads_are_not_compared_with_large_ones():
    """Their time is mostly not transfer."""
    limit = AdaptiveLimit(16)
    for _ in range(200):
        limit.answered(limit.round, 100, 1.0)
        limit.answered(limit.round, 1, 1.0)
    assert limit.current == 16
