"""app.eta: when the server will be ready."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.eta import Eta
from streaming.progress import Progress


def landing(total_bytes: int, landed_bytes: int, elapsed_s: float) -> Progress:
    """A load that has run for so long at an even pace, from 0 s on."""
    progress = Progress(total_bytes, start_s=0.0)
    progress.add(landed_bytes, elapsed_s)
    return progress


def prepared(eta: Eta, end_s: float) -> None:
    eta.engine_phase("engine.warmup", end_s - 0.2, end_s)


def test_what_is_left_to_land_and_a_pass_over_it():
    """With the engine prepared, it is the bytes at their rate, then a pass like the one that warmed it up."""
    eta = Eta(0.0)
    prepared(eta, 2.0)
    assert eta.until_ready_s(landing(100, 40, 4.0), 4.0) == pytest.approx(6.0 + 0.2)


def test_an_engine_that_needs_longer_than_the_bytes():
    """Bytes that land sooner than torch is imported do not make the server ready."""
    eta = Eta(0.0)
    assert eta.until_ready_s(landing(100, 90, 0.9), 0.9) == pytest.approx(3.0 - 0.9 + 0.5)


def test_nobody_knows_while_nothing_moves():
    """There is no rate before the first byte."""
    assert Eta(0.0).until_ready_s(Progress(100, start_s=0.0), 1.0) is None


def test_what_is_left_of_the_first_pass_once_the_bytes_are_there():
    """The time that has passed since is taken off, but it is never nothing while something is left."""
    eta = Eta(0.0)
    prepared(eta, 2.0)
    eta.landed(5.0)
    whole = landing(100, 100, 5.0)
    assert eta.until_ready_s(whole, 5.05) == pytest.approx(0.15)
    assert eta.until_ready_s(whole, 99.0) == pytest.approx(0.1)


def test_another_engine_takes_as_long_as_the_one_before():
    """What the first one told is what the second one is reckoned with."""
    eta = Eta(0.0)
    prepared(eta, 7.0)
    eta.engine_phase("engine.first_pass", 8.0, 9.0)
    eta.landed(8.0)
    eta.engine_started(100.0)
    whole = landing(100, 100, 8.0)
    assert eta.until_ready_s(whole, 102.0) == pytest.approx(5.0 + 1.0)
    eta.engine_phase("engine.cache", 105.0, 106.0)  # it finds the bytes there, and needs no pass without them
    assert eta.until_ready_s(whole, 106.5) == pytest.approx(0.5)


@given(
    total_bytes=st.integers(1, 1 << 40),
    share=st.floats(0, 1),
    elapsed_s=st.floats(0.001, 1e5),
    prepared_s=st.none() | st.floats(0, 1e5),
    has_landed=st.booleans(),
)
def test_it_is_a_time_to_come_whenever_it_is_known(total_bytes, share, elapsed_s, prepared_s, has_landed):
    """Never negative, never infinite, whatever order things happen in."""
    eta = Eta(0.0)
    if prepared_s is not None:
        prepared(eta, prepared_s)
    if has_landed:
        eta.landed(elapsed_s)
    found = eta.until_ready_s(landing(total_bytes, int(total_bytes * share), elapsed_s), elapsed_s)
    assert found is None or 0 < found < float("inf")
